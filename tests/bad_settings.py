"""Settings that mean nothing, contradict one another, or have no effect."""

from collections.abc import Callable

from bad_place import Bad, Place

OBJECT = "rank: !!python/object/apply:os.system ['echo taken']\n"


def setting(*flags: object) -> Callable[[Place], list[object]]:
    """Unlearn with these flags."""
    return lambda p: p.unlearn(*flags)


def written(content: str) -> Callable[[Place], list[object]]:
    """Unlearn with a settings file of this content."""
    return lambda p: p.unlearn("--config", p.file("c.yaml", content))


RECIPES = (
    "adaptive-rmu-7b, agad-7b, alt-po-tofu, atyaephyra-1b, atyaephyra-7b, ce-u-tofu, ga-tofu, gd-tofu, idk-dpo-tofu, "
    "kl-min-tofu, llmu-yao, neko-1b, npo-tofu, pdu-tofu, rmu-zephyr-7b, satimp-7b, sha256-7b, simnpo-forget05, "
    "simnpo-forget10, stat-ynu, sugd-7b, task-vector-muse, undial-7b, wga-7b, zjuklab-7b"
)

SETTINGS = [
    Bad(
        "nothing",
        lambda p: ["unlearn"],
        (
            "model: unlearn needs this setting (--model); forget: unlearn needs this setting (--forget); retain: "
            "unlearn needs this setting (--retain); out: unlearn needs this setting (--out)"
        ),
    ),
    Bad(
        "unknown command",
        lambda p: ["unlern"],
        "No such command 'unlern'. Did you mean 'unlearn'? (`letheon --help` lists what there is)",
    ),
    Bad(
        "unknown flag",
        lambda p: ["unlearn", "--epoch", 3],
        (
            "No such option '--epoch'. (Did you mean one of: '--epochs', '--keep', '--npo'?) (`letheon unlearn "
            "--help` lists what there is)"
        ),
    ),
    Bad(
        "a flag of earlier versions",
        setting("--compile"),
        "compile: this setting of earlier versions has been removed; leave it out",
    ),
    Bad(
        "a setting of earlier versions",
        written("compile: true\n"),
        "compile: this setting of earlier versions has been removed; leave it out",
    ),
    Bad(
        "flag without its value",
        lambda p: ["unlearn", "--epochs"],
        "Option '--epochs' requires an argument (`letheon --help` lists what there is)",
    ),
    Bad("no epochs", setting("--epochs", 0), "epochs: expected a number of at least 1, got '0'"),
    Bad(
        "too many epochs",
        setting("--epochs", 10**12),
        "epochs: expected a number of at most 1000000, got '1000000000000'",
    ),
    Bad("half an epoch", setting("--epochs", 0.5), "epochs: expected a whole number, got '0.5'"),
    Bad(
        "a learning rate that is none",
        setting("--learning-rate", "nan"),
        "learning_rate: expected a finite number or 'auto', got 'nan'",
    ),
    Bad(
        "an infinite learning rate",
        setting("--learning-rate", "inf"),
        "learning_rate: expected a finite number or 'auto', got 'inf'",
    ),
    Bad(
        "a seed too large", setting("--seed", 2**32), "seed: expected a number of at most 4294967295, got '4294967296'"
    ),
    Bad(
        "an unknown choice",
        setting("--npo", "tokn"),
        "npo: expected 'token', 'sequence', 'batch' or 'logits', got 'tokn' (did you mean 'token'?)",
    ),
    Bad(
        "an unknown method",
        setting("--method", "simnp"),
        (
            "method: expected one of low-rank-npo, neko, ga, gd, kl-min, npo, simnpo, idk-dpo, alt-po, rmu, "
            "adaptive-rmu, undial, wga, satimp, ce-u, pdu, sugd, agad, npo-ties, constrained, stat, llmu, "
            "task-vector, quantile, got 'simnp' (did you mean 'simnpo'?)"
        ),
    ),
    Bad(
        "a method in capitals",
        setting("--method", "IDK-DPO"),
        (
            "method: expected one of low-rank-npo, neko, ga, gd, kl-min, npo, simnpo, idk-dpo, alt-po, rmu, "
            "adaptive-rmu, undial, wga, satimp, ce-u, pdu, sugd, agad, npo-ties, constrained, stat, llmu, "
            "task-vector, quantile, got 'IDK-DPO' (did you mean 'idk-dpo'?)"
        ),
    ),
    Bad(
        "an unknown template",
        setting("--template", "join"),
        "template: expected one of joined, plain, pair, question-answer, neko, inst, chat, auto, got 'join' (did you "
        "mean 'joined'?)",
    ),
    Bad(
        "no chat template",
        setting("--template", "chat"),
        "template: 'chat' needs a tokenizer with a chat template, but this one has none; use another form, such as "
        "joined or question-answer",
    ),
    Bad(
        "an unknown recipe",
        setting("--recipe", "atyaephyra-8b"),
        f"recipe: expected one of {RECIPES}, got 'atyaephyra-8b' (did you mean 'atyaephyra-7b'?)",
    ),
    Bad("an empty recipe", setting("--recipe", ""), f"recipe: expected one of {RECIPES}, got ''"),
    Bad(
        "an unknown tracker",
        setting("--trackers", "tensorbord"),
        (
            "trackers: expected some of aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, "
            "wandb, got 'tensorbord' (did you mean 'tensorboard'?)"
        ),
    ),
    Bad(
        "a coefficient of another method",
        setting("--coefficients", "margin=1"),
        "margin: method 'low-rank-npo' does not take it (it takes beta, gamma, delta, npo, kl); leave it out",
    ),
    Bad(
        "a coefficient without value",
        setting("--coefficients", "margin"),
        "coefficients: expected NAME=VALUE pairs separated by commas, got 'margin'",
    ),
    Bad(
        "a coefficient twice in one flag",
        setting("--coefficients", "beta=1,beta=2"),
        "coefficients: expected each name once, got 'beta' more than once in 'beta=1,beta=2'",
    ),
    Bad(
        "a coefficient twice",
        setting("--beta", 1, "--coefficients", "beta=2"),
        "beta: expected one value, got 1.0 from the flag and '2' from the coefficients; give one of them",
    ),
    Bad(
        "a setting without effect",
        setting("--chunk-size", 4),
        "chunk_size: has no effect without --schedule chunked or annealed; leave it out, or set that too",
    ),
    Bad(
        "a schedule without retain rows",
        setting("--schedule", "forget"),
        (
            "schedule: 'forget' leaves out the retain rows, but method 'low-rank-npo' has a term on them; use "
            "--schedule mixed"
        ),
    ),
    Bad(
        "a score after the end",
        setting("--epochs", 1, "--score-at", 2),
        "score_at: expected epochs above 0 and at most 1 (--epochs), got 2",
    ),
    Bad(
        "a score after the last step",
        setting("--max-steps", 2, "--batch-size", 2, "--score-at", "0.4,1", "--learning-rate", 1e-3),
        (
            "score_at: epoch 1 is over after step 3, but the run ends after step 2 (--max-steps 2); leave it out or "
            "raise --max-steps"
        ),
    ),
    Bad(
        "a score between those that a run follows",
        setting("--batch-size", 2, "--score-at", "0.4,1"),
        (
            "score_at: a run that finds its own learning rate is scored every 3 steps, of which epoch 0.4 (step 1) is "
            "none; name epochs that are, or set --checkpoint-epochs or --checkpoint-steps"
        ),
    ),
    Bad(
        "a score before the first step",
        setting("--score-at", 0.01),
        (
            "score_at: epoch 0.01 is less than half a step, since an epoch has 2 steps; the first step is over at "
            "epoch 0.5"
        ),
    ),
    Bad(
        "a validation set of all rows",
        setting("--validation", 0.99, "--lr", 1e-3),
        (
            "validation: a share of 0.99 of 3 forget rows leaves 3 rows to score on; at least one row must be left "
            "for scoring and one for training"
        ),
    ),
    Bad(
        "rows left out that a learning rate follows",
        setting("--validation", 0.5),
        (
            "validation: scores are then taken on rows that are not trained on, so --learning-rate auto cannot follow "
            "them; set --learning-rate"
        ),
    ),
    Bad(
        "a span of layers that is none",
        setting("--layers", "top"),
        'layers: expected a span of layers such as "-8:" or "0:6", got \'top\'',
    ),
    Bad(
        "layers that the model has not",
        setting("--layers", "7:9"),
        "layers: '7:9' selects none of the model's 2 layers, 0 to 1",
    ),
    Bad(
        "modules that the model has not",
        setting("--target-modules", "q_prj"),
        (
            "target_modules: GPTNeoXForCausalLM has no linear layer 'q_prj'; it has dense, dense_4h_to_h, "
            "dense_h_to_4h, query_key_value (or say all-linear)"
        ),
    ),
    Bad(
        "weights that the model has not",
        setting("--adapt", "weights", "--target-modules", "mpl"),
        (
            "target_modules: GPTNeoXForCausalLM has no module 'mpl' (did you mean 'mlp'?); it has attention, "
            "dense, dense_4h_to_h, dense_h_to_4h, embed_in, final_layer_norm, gpt_neox, input_layernorm, layers, "
            "lm_head, mlp, post_attention_layernorm, query_key_value"
        ),
    ),
    Bad(
        "no modules",
        setting("--target-modules", ""),
        "target_modules: expected at least one name, or all-linear; leave it out for the default",
    ),
    Bad(
        "no GPU",
        setting("--device", "cuda"),
        "device: expected one that torch finds here (cpu), got 'cuda'; leave out --device or give one of these",
    ),
    Bad(
        "a device that torch has not",
        setting("--device", "gpu"),
        "device: expected a device such as cpu, cuda, cuda:1, xpu or mps, got 'gpu'",
    ),
    Bad(
        "an unknown field",
        setting("--fields", "promt=input"),
        (
            "fields: expected one of id, prompt, answer, task, kind, messages, text on the left, got 'promt' (did you "
            "mean 'prompt'?)"
        ),
    ),
    Bad(
        "no settings file",
        lambda p: p.unlearn("--config", p.at / "c.yaml"),
        "{at}/c.yaml: the settings file cannot be read (No such file or directory); check the path",
    ),
    Bad(
        "settings that are not YAML",
        lambda p: p.unlearn("--config", p.file("c.yaml", "epochs: [3")),
        (
            "{at}/c.yaml: expected YAML (line 1, column 11: expected ',' or ']', but got '<stream end>'); "
            "correct the file"
        ),
    ),
    Bad(
        "settings in a list",
        lambda p: p.unlearn("--config", p.file("c.yaml", "- epochs: 3")),
        "{at}/c.yaml: expected a mapping of setting names to values, such as `epochs: 5`, got [{'epochs': 3}]",
    ),
    Bad(
        "settings that make an object",
        lambda p: p.unlearn("--config", p.file("c.yaml", OBJECT)),
        (
            "{at}/c.yaml: expected YAML (line 1, column 7: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'); correct the file"
        ),
    ),
    Bad(
        "a setting twice",
        lambda p: p.unlearn("--config", p.file("c.yaml", "rank: 3\nrank: 4\n")),
        "{at}/c.yaml: expected YAML (line 2, column 1: the name 'rank' comes twice); correct the file",
    ),
    Bad(
        "a date that is none",
        lambda p: p.unlearn("--config", p.file("c.yaml", "seed: 2025-02-30")),
        "{at}/c.yaml: expected YAML (day is out of range for month); correct the file",
    ),
    Bad(
        "an unknown setting",
        lambda p: p.unlearn("--config", p.file("c.yaml", "learning-rat: 1.0")),
        "{at}/c.yaml: learning_rat: no such setting of unlearn (did you mean 'learning_rate'?)",
    ),
    Bad(
        "a flag in a settings file",
        written("recipe: neko-1b"),
        "{at}/c.yaml: recipe: is a flag and not a setting, so a settings file cannot hold it; give --recipe on the "
        "command line",
    ),
    Bad(
        "a study for settings",
        written("base: {rank: 3}\ngrid: {rank: [3, 4]}"),
        "{at}/c.yaml: expected settings of unlearn, got a study; run it by `letheon study {at}/c.yaml`",
    ),
    Bad(
        "a list for a text",
        lambda p: ["unlearn", "--config", p.file("c.yaml", "model: [a, b]\nforget: f\nretain: [r]\nout: [o]")],
        "model: expected text, got ['a', 'b']; retain: expected text, got ['r']; out: expected a path, got ['o']",
    ),
    Bad(
        "settings without values",
        written("learning_rate:\nfields: {prompt: }"),
        "fields.prompt: expected text, got nothing; learning_rate: expected a number or 'auto', got nothing",
    ),
    Bad(
        "a blank for a tokenizer",
        written("tokenizer: '  '"),
        "tokenizer: expected a value, got nothing; leave the setting out or give it one",
    ),
    Bad(
        "a coefficient that is no number",
        written("coefficients: {beta: .nan}"),
        "coefficients.beta: expected a finite number or text, got nan",
    ),
    Bad(
        "no files to memorise",
        lambda p: ["memorize", "--out", p.at / "run", "--config", p.file("c.yaml", "rows: []")],
        "rows: expected at least one value, got []",
    ),
    Bad(
        "a blank for a file to memorise",
        lambda p: ["memorize", "--out", p.at / "run", "--config", p.file("c.yaml", "rows: ['']")],
        "rows.0: expected the name of a file, got ''",
    ),
    Bad(
        "true for a number",
        lambda p: p.unlearn("--config", p.file("c.yaml", "epochs: yes")),
        "epochs: expected a value other than true or false, got true; write the value itself",
    ),
    Bad(
        "NUL in a path",
        lambda p: p.unlearn("--config", p.file("c.yaml", 'cache_dir: "a\\0b"')),
        "cache_dir: expected text in UTF-8 without NUL characters, got 'a\\x00b'",
    ),
    Bad(
        "Latin-1 settings",
        lambda p: p.unlearn("--config", p.file("c.yaml", b"# \xe9\n")),
        (
            "{at}/c.yaml: expected YAML in UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 2: invalid "
            "continuation byte); save the file as UTF-8"
        ),
    ),
    Bad(
        "a benchmark size that is none",
        lambda p: ["data", "synthetic", "--to", p.at / "run", "--size", "smal"],
        "size: expected one of tiny, small, default, got 'smal' (did you mean 'small'?)",
    ),
    Bad(
        "an unknown architecture",
        lambda p: p.memorize("--architecture", "olmoo"),
        (
            "unknown architecture 'olmoo' (did you mean 'olmo'?); known: olmo, llama, gpt-neox, qwen, gemma, "
            "gemma2, gpt2"
        ),
    ),
    Bad(
        "the size of a model that is there",
        lambda p: p.memorize("--model", p.at / "target", "--width", 64),
        "width: only for a new model, but --model {at}/target is given; leave out one of them",
    ),
    Bad(
        "the size of a tokenizer that is there",
        lambda p: p.memorize("--tokenizer", p.at / "target", "--vocab-size", 400),
        "vocab_size: only for a new tokenizer, but --tokenizer is given; leave out one of them",
    ),
    Bad(
        "how often general text comes, without any",
        lambda p: p.memorize("--text-every", 2),
        "text_every: has no effect without --text; leave it out, or set --text too",
    ),
    Bad(
        "an adapter on a new model",
        lambda p: p.memorize("--adapt", "lora"),
        (
            "adapt: a new model has random weights, of which all must be trained; leave it out, or give a checkpoint "
            "by --model"
        ),
    ),
    Bad(
        "the rank of no adapter",
        lambda p: p.memorize("--model", p.at / "target", "--rank", 8),
        "rank: no effect without --adapt lora; leave it out, or set --adapt lora too",
    ),
    Bad(
        "heads that do not divide the width",
        lambda p: p.memorize("--num-heads", 3),
        "width: expected a multiple of 8 * num_heads = 24, got 256; use 264",
    ),
]
