"""Checkpoints and tokenizers that are not usable."""

from torch import Tensor

from bad_place import Bad

CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("embed_out")}


def _with_nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * float("nan" if ".1.mlp.dense_h_to_4h.weight" in name else 1) for name, value in state.items()}


def _conversion(load: str, tokenizer: str = "(d)") -> str:
    code = (
        "import transformers as t; d = '{at}/target'; o = '{at}/target-dequantised'; A = t.AutoModelForCausalLM; "
        f"m = A.from_pretrained{load}; vars(m.config).pop('quantization_config', 0); "
        "n = A.from_config(m.config, dtype=m.dtype); n.load_state_dict(m.state_dict()); n.save_pretrained(o); "
        f"t.AutoTokenizer.from_pretrained{tokenizer}.save_pretrained(o)"
    )
    return f'run python -c "{code}" and give {{at}}/target-dequantised'


def _quantised(kind: str) -> str:
    return (
        f"{{at}}/target: expected weights in float32, bfloat16 or float16, got quantised ones ({kind}), which a "
        f"trained adapter cannot be merged into; "
    )


_NOT_TRAINED = (
    "adapt: quantised weights cannot be trained themselves, only an adapter beside them; use --adapt lora, or "
)
_TWICE = (
    "quantise: expected a checkpoint with ordinary weights, but those of {at}/target are quantised already "
    "(bitsandbytes, 8 bit); leave out --quantise"
)


CHECKPOINTS = [
    Bad(
        "no checkpoint",
        lambda p: p.unlearn(model=p.at / "targt"),
        ("{at}/targt: no such folder (did you mean 'target'?); expected a checkpoint folder or a hub id (owner/name)"),
    ),
    Bad(
        "no checkpoint in a folder that is there",
        lambda p: p.unlearn(model="at/targt"),
        (
            "at/targt: no such folder (did you mean 'target'?); expected a checkpoint folder or a hub id (owner/name), "
            "and at is a folder here; to use the hub id of that name, run from another folder"
        ),
    ),
    Bad(
        "no checkpoint by a name that ends in a slash",
        lambda p: p.evaluate("--model", "targt/"),
        "targt/: no such folder; expected a checkpoint folder or a hub id (owner/name)",
    ),
    Bad(
        "no checkpoint to go on from",
        lambda p: p.memorize("--model", "my model"),
        "my model: no such folder; expected a checkpoint folder or a hub id (owner/name)",
    ),
    Bad(
        "a link to no checkpoint",
        lambda p: p.unlearn(model=p.link("link", "gone")),
        "{at}/link: is a link to gone, which is not there; give the folder itself",
    ),
    Bad(
        "a file for a checkpoint",
        lambda p: p.unlearn(model=p.at / "forget.jsonl"),
        "{at}/forget.jsonl: expected a checkpoint folder (config.json, model.safetensors), got a file",
    ),
    Bad(
        "no config.json",
        lambda p: p.rename("config.json", None).unlearn(),
        "{at}/target: expected a checkpoint folder, but it has no config.json",
    ),
    Bad(
        "config.json cut off",
        lambda p: (p.file("target/config.json", "{"), p.unlearn())[1],
        (
            "{at}/target/config.json: expected JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)); download the checkpoint again"
        ),
    ),
    Bad(
        "an unknown architecture in it",
        lambda p: p.config(model_type="olmoo").unlearn(),
        (
            "{at}/target: the model's configuration cannot be read (ValueError: The checkpoint you are trying to "
            "load has model type `olmoo` but Transformers does not recognize this architecture. This could be "
            "because of an issue with the checkpoint, or because your version of Transformers is out of date.); "
            "give the folder or hub id of a model that this version of transformers knows"
        ),
    ),
    Bad(
        "weights with code of their own",
        lambda p: p.config(model_type="own", auto_map=CODE).unlearn(),
        (
            "{at}/target: contains Python code, which runs only with your consent; read the code and, if you trust "
            "it, set --trust-remote-code"
        ),
    ),
    Bad(
        "no weights",
        lambda p: p.rename("model.safetensors", None).unlearn(),
        "{at}/target: expected weights in *.safetensors, found none",
    ),
    Bad(
        "a pickle",
        lambda p: p.rename("model.safetensors", "pytorch_model.bin").unlearn(),
        (
            "{at}/target: expected weights in *.safetensors, found only pytorch_model.bin, a pickle, which Letheon "
            "never reads; convert it with transformers on a machine you trust: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
        ),
    ),
    Bad(
        "a pickle .pt",
        lambda p: p.rename("model.safetensors", "model.pt").evaluate(),
        (
            "{at}/target: expected weights in *.safetensors, found only model.pt, a pickle, which Letheon never reads; "
            "convert it with transformers on a machine you trust: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
        ),
    ),
    Bad(
        "weights of another name",
        lambda p: p.rename("model.safetensors", "weights.safetensors").unlearn(),
        (
            "{at}/target: expected weights in model.safetensors or a list of shards in "
            "model.safetensors.index.json, found weights.safetensors"
        ),
    ),
    Bad(
        "weights cut off",
        lambda p: p.cut(20_000).unlearn(),
        (
            "{at}/target/model.safetensors: expected a whole safetensors file, but it is damaged or cut off "
            "(Error while deserializing header: incomplete metadata, file not fully covered); download it again"
        ),
    ),
    Bad(
        "weights of no bytes",
        lambda p: p.cut(0).evaluate(),
        (
            "{at}/target/model.safetensors: expected a whole safetensors file, but it is damaged or cut off "
            "(Error while deserializing header: header too small); download it again"
        ),
    ),
    Bad(
        "a shard that is missing",
        lambda p: p.index('{"weight_map": {"a": "b.safetensors"}}').unlearn(),
        (
            "{at}/target/model.safetensors.index.json: lists the file b.safetensors, which does not exist; "
            "download the checkpoint again"
        ),
    ),
    Bad(
        "a shard elsewhere",
        lambda p: p.index('{"weight_map": {"a": "../../b.safetensors"}}').unlearn(),
        (
            "{at}/target/model.safetensors.index.json: expected names of files in the same folder, got "
            "'../../b.safetensors'"
        ),
    ),
    Bad(
        "a list of shards that is none",
        lambda p: p.index('{"weight_map": []}').unlearn(),
        "{at}/target/model.safetensors.index.json: expected `weight_map` to map tensors to files, got []",
    ),
    Bad(
        "an adapter",
        lambda p: (p.file("target/adapter_config.json", "{}"), p.unlearn())[1],
        (
            "{at}/target: holds an adapter (adapter_config.json), not a whole checkpoint; merge it into its base "
            "model with PEFT's merge_and_unload(), save the result, and give that folder"
        ),
    ),
    Bad(
        "weights in 4 bit, to be trained themselves",
        lambda p: p.config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}).unlearn(
            "--adapt", "weights"
        ),
        _NOT_TRAINED + "dequantise them: " + _conversion("(d).dequantize()"),
    ),
    Bad(
        "weights to be quantised and trained themselves",
        lambda p: p.unlearn("--adapt", "weights", "--quantise", "nf4"),
        _NOT_TRAINED + "leave out --quantise",
    ),
    Bad(
        "weights that are quantised already, to unlearn",
        lambda p: p.config(quantization_config={"load_in_8bit": True}).unlearn("--quantise", "nf4"),
        _TWICE,
    ),
    Bad(
        "weights that are quantised already, to evaluate",
        lambda p: p.config(quantization_config={"load_in_8bit": True}).evaluate("--quantise", "int8"),
        _TWICE,
    ),
    Bad(
        "weights in 8 bit, to memorise",
        lambda p: p.config(quantization_config={"load_in_8bit": True}).memorize("--model", p.at / "target"),
        _quantised("bitsandbytes, 8 bit") + "dequantise it first: " + _conversion("(d).dequantize()"),
    ),
    Bad(
        "weights in FP8",
        lambda p: p.config(quantization_config={"quant_method": "fp8"}).unlearn(),
        _quantised("fp8")
        + "dequantise it first: "
        + _conversion("(d, quantization_config=t.FineGrainedFP8Config(dequantize=True))"),
    ),
    Bad(
        "weights by GPTQ",
        lambda p: p.config(quantization_config={"quant_method": "gptq", "bits": 4}).unlearn(),
        (_quantised("gptq") + "transformers cannot dequantise it, so give the checkpoint that it was quantised from"),
    ),
    Bad(
        "a GGUF file",
        lambda p: p.unlearn(model=p.file("target/tiny.gguf", "GGUF")),
        (
            "{at}/target/tiny.gguf: expected safetensors, got a GGUF file; make a checkpoint of it, for which "
            "transformers needs gguf: " + _conversion("(d, gguf_file='tiny.gguf')", "(d, gguf_file='tiny.gguf')")
        ),
    ),
    Bad(
        "a folder of GGUF files",
        lambda p: p.rename("model.safetensors", "tiny.gguf").evaluate(),
        (
            "{at}/target/tiny.gguf: expected safetensors, got a GGUF file; make a checkpoint of it, for which "
            "transformers needs gguf: " + _conversion("(d, gguf_file='tiny.gguf')", "(d, gguf_file='tiny.gguf')")
        ),
    ),
    Bad(
        "no tokenizer",
        lambda p: p.rename("tokenizer.json", None).unlearn(),
        (
            "{at}/target: no tokenizer could be loaded from here (ValueError: Couldn't instantiate the backend "
            "tokenizer from one of: ); name the one the model was trained with by --tokenizer FOLDER_OR_HUB_ID"
        ),
    ),
    Bad(
        "a broken tokenizer",
        lambda p: (p.file("target/tokenizer.json", "{"), p.unlearn())[1],
        (
            "{at}/target: no tokenizer could be loaded from here (JSONDecodeError: Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1)); name the one the model was trained with by "
            "--tokenizer FOLDER_OR_HUB_ID"
        ),
    ),
    Bad(
        "no tokenizer where named",
        lambda p: p.unlearn("--tokenizer", p.at / "nowhere"),
        "{at}/nowhere: no such folder; expected a checkpoint folder or a hub id (owner/name)",
    ),
    Bad(
        "a file for a tokenizer",
        lambda p: p.memorize("--tokenizer", p.at / "target" / "tokenizer.json"),
        "{at}/target/tokenizer.json: expected the folder of a tokenizer, got a file; give the folder that contains it",
    ),
    Bad(
        "no end of sequence",
        lambda p: p.token_settings(eos_token=None).unlearn(),
        (
            "{at}/target: the tokenizer has no end-of-sequence token, which generation needs to stop; set eos_token in "
            "its tokenizer_config.json to the token that ended the model's texts in training (it has <|endoftext|>, "
            "<|pad|>), or give another tokenizer by --tokenizer"
        ),
    ),
    Bad(
        "a tokenizer of another model",
        lambda p: p.config(vocab_size=100).unlearn(),
        (
            "{at}/target: the tokenizer has token ids up to 387, the model embeddings for 100 ids only; give the "
            "tokenizer that the model was trained with (--tokenizer)"
        ),
    ),
    Bad(
        "a model without a head",
        lambda p: p.weights(_without_head).unlearn(),
        (
            "{at}/target: the weights lack lm_head.weight of GPTNeoXForCausalLM, so they would be random; give a "
            "checkpoint of the whole language model, including its head"
        ),
        loads_weights=True,
    ),
    Bad(
        "weights of another size",
        lambda p: p.config(intermediate_size=96).unlearn(),
        (
            "{at}/target: the weights of gpt_neox.layers.0.mlp.dense_4h_to_h.weight are 32 by 64, the "
            "configuration says 32 by 96; config.json and weights belong to different models; download the checkpoint "
            "again"
        ),
        loads_weights=True,
    ),
    Bad(
        "fewer layers in config.json than in the weights",
        lambda p: p.config(num_hidden_layers=1).unlearn(),
        (
            "{at}/target: the weights hold 2 layers in gpt_neox.layers, the configuration says 1; config.json and "
            "weights belong to different models; download the checkpoint again"
        ),
        loads_weights=True,
    ),
    Bad(
        "a model that fills in masked words",
        lambda p: p.masked().unlearn(),
        (
            "{at}/target: expected a causal language model, but in this BertLMHeadModel a later token changes the "
            "predictions at earlier positions, as in a masked language model; give a checkpoint that was trained to "
            "continue text (if this one was, set is_decoder to true in its config.json)"
        ),
        loads_weights=True,
    ),
    Bad(
        "weights that are no numbers",
        lambda p: p.weights(_with_nan).evaluate(),
        (
            "{at}/target: the weights of gpt_neox.layers.1.mlp.dense_h_to_4h.weight are not all finite (NaN or "
            "infinity); the checkpoint is broken, give an earlier one"
        ),
        loads_weights=True,
    ),
]
