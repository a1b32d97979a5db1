"""The methods. A new one needs a loss in this folder, a declaration here, a recipe and tests, and nothing else."""

from collections.abc import Mapping

from letheon.errors import SettingsError, nearest
from letheon.objective.control import DualAscent, Guarded
from letheon.objective.losses import forget, retain
from letheon.objective.methods import Alternatives, Coefficient, Method
from letheon.objective.parts import (
    ce_u_terms,
    dpo_terms,
    flattening_terms,
    ga_terms,
    kl_terms,
    nll_terms,
    npo_terms,
    rmu_terms,
    terms_on,
    transport_terms,
    undial_terms,
)

BETA = Coefficient(0.1, "temperature")
GAMMA = Coefficient(1.0, "weight of the retain NLL")
DELTA = Coefficient(1.0, "weight of the retain KL")
KL = Coefficient("forward", "form of the retain KL", choices=("forward", "reverse", "gold"))
NPO = Coefficient("token", "unit of the log-ratio", choices=("token", "sequence", "batch", "logits"))
LAYER = Coefficient("auto", "decoder layer whose states are steered, counted from 0")

FORGET_ONLY = {"schedule": "forget"}
ALL_WEIGHTS = {"adapt": "weights"}


def get_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        SettingsError: there is no such method.
    """
    if name not in METHODS:
        raise SettingsError(f"method: expected one of {', '.join(METHODS)}, got '{name}'{nearest(name, METHODS)}")
    return METHODS[name]


_ALL = (
    Method(
        name="low-rank-npo",
        formula="NPO + gamma * NLL(retain) + delta * KL(retain)",
        paper="Bronec and Helcl 2025, Atyaephyra at SemEval-2025 Task 4, arXiv 2503.13690, Eq. 5",
        coefficients={
            "beta": Coefficient(0.5, "temperature of NPO"),
            "gamma": GAMMA,
            "delta": Coefficient(0.5, DELTA.meaning),
            "npo": NPO,
            "kl": KL,
        },
        terms=lambda c: (*npo_terms(c), *nll_terms(c.number("gamma")), *kl_terms(c.number("delta"), c.choice("kl"))),
        notes="The paper writes `--kl reverse`. The authors' code computes `--kl gold`, which is not a divergence.",
    ),
    Method(
        name="neko",
        formula="forget_weight * mean over rows of mean log p(forget) + delta * KL(retain)",
        paper="Lai and Chen 2025, NEKO at SemEval-2025 Task 4, ACL Anthology 2025.semeval-1.64",
        coefficients={"forget_weight": Coefficient(0.2, "weight of the ascent"), "delta": DELTA, "kl": KL},
        settings={"schedule": "paired", **ALL_WEIGHTS},
        terms=lambda c: (
            *terms_on("forget", "ga_by_row", c.number("forget_weight"), forget.gradient_ascent_by_sequence),
            *kl_terms(c.number("delta"), c.choice("kl")),
        ),
        notes="Only one model is in memory: the reference is a store of hidden states and the original head matrix.",
    ),
    Method(
        name="ga",
        formula="mean log p(forget)",
        paper="Ramakrishna et al. 2025, SemEval-2025 Task 4 (gradient ascent baseline), arXiv 2504.02883",
        settings=FORGET_ONLY,
        terms=lambda _: ga_terms(),
    ),
    Method(
        name="gd",
        formula="mean log p(forget) + gamma * NLL(retain)",
        paper="Ramakrishna et al. 2025, SemEval-2025 Task 4 (gradient difference baseline), arXiv 2504.02883",
        coefficients={"gamma": GAMMA},
        terms=lambda c: (*ga_terms(), *nll_terms(c.number("gamma"))),
    ),
    Method(
        name="kl-min",
        formula="mean log p(forget) + delta * KL(retain)",
        paper="Ramakrishna et al. 2025, SemEval-2025 Task 4 (KL minimisation baseline), arXiv 2504.02883",
        coefficients={"delta": DELTA, "kl": KL},
        terms=lambda c: (*ga_terms(), *kl_terms(c.number("delta"), c.choice("kl"))),
    ),
    Method(
        name="npo",
        formula="(2/beta) mean over rows of softplus(beta * r(forget)), or another form of NPO with `--npo`",
        paper="Zhang et al. 2024, Negative Preference Optimization, arXiv 2404.05868, Eq. 3",
        coefficients={"beta": BETA, "npo": Coefficient("sequence", NPO.meaning, NPO.choices)},
        settings=FORGET_ONLY,
        terms=npo_terms,
    ),
    Method(
        name="simnpo",
        formula="forget_weight * (2/beta) mean softplus(beta * mean log p(forget) + margin) + gamma * NLL(retain)",
        paper="Fan et al. 2024, Simplicity Prevails: SimNPO, arXiv 2410.07163",
        coefficients={
            "beta": Coefficient(4.5, BETA.meaning),
            "margin": Coefficient(0.0, "added inside the sigmoid", minimum=-1e3),
            "forget_weight": Coefficient(0.125, "weight of the forget term"),
            "gamma": GAMMA,
        },
        terms=lambda c: (
            *terms_on(
                "forget",
                "simnpo",
                c.number("forget_weight"),
                lambda v, t: forget.simnpo(v, t, beta=c.number("beta"), margin=c.number("margin")),
            ),
            *nll_terms(c.number("gamma")),
        ),
        notes="margin is the paper's gamma, which the authors' code multiplies by beta; it is 0 in all published runs.",
    ),
    Method(
        name="idk-dpo",
        formula="(2/beta) mean softplus(-beta (r(refusal) - r(forget))) + gamma * NLL(retain)",
        paper="Maini et al. 2024, TOFU (IdkDPO), arXiv 2401.06121; DPO of Rafailov et al. 2023, arXiv 2305.18290",
        coefficients={"beta": BETA, "gamma": GAMMA},
        alternatives=Alternatives("refusals", replace=False, per_row=5),
        terms=lambda c: (*dpo_terms(c), *nll_terms(c.number("gamma"))),
        notes="With --alternatives you give the preferred answers yourself; the method is then plain DPO.",
    ),
    Method(
        name="alt-po",
        formula="(2/beta) mean softplus(-beta (r(alternative) - r(forget))) + gamma * NLL(retain)",
        paper="Mekala et al. 2024, Alternate Preference Optimization, arXiv 2409.13474",
        coefficients={"beta": BETA, "gamma": GAMMA},
        alternatives=Alternatives("generated", replace=False, per_row=5),
        terms=lambda c: (*dpo_terms(c), *nll_terms(c.number("gamma"))),
        notes="The paper asks the model for alternatives; here they are sampled without the true first token.",
    ),
    Method(
        name="rmu",
        formula="mean |h - scale * u|^2 on forget + retain_weight * mean |h - h_ref|^2 on retain, h of one layer",
        paper="Li et al. 2024, The WMDP Benchmark (RMU), arXiv 2403.03218",
        coefficients={
            "scale": Coefficient(6.5, "length of the random vector u that forget states are moved to"),
            "retain_weight": Coefficient(1200.0, "weight of the retain term"),
            "layer": LAYER,
        },
        settings={"schedule": "paired", **ALL_WEIGHTS},
        layer="layer",
        terms=lambda c: rmu_terms(c, adaptive=False),
        notes="Squares are summed over the width; the published code averages them. Scale and weight carry over, a "
        "gradient norm for clipping does not. All forget rows share one direction.",
    ),
    Method(
        name="adaptive-rmu",
        formula="rmu with its scale multiplied by the mean length of the reference's forget states",
        paper="Huu-Tien et al. 2024, On Effects of Steering Latent Representation, arXiv 2408.06223",
        coefficients={
            "scale": Coefficient(5.0, "length of u, as a multiple of the mean length of the reference's forget states"),
            "retain_weight": Coefficient(1200.0, "weight of the retain term"),
            "layer": LAYER,
        },
        settings={"schedule": "paired", **ALL_WEIGHTS},
        layer="layer",
        terms=lambda c: rmu_terms(c, adaptive=True),
        notes="The mean length is taken over all forget rows; the published code takes it over the first batch.",
    ),
    Method(
        name="undial",
        formula="mean cross-entropy(softmax(z_ref - beta * onehot(y)), p(forget))",
        paper="Dong et al. 2024, UNDIAL, arXiv 2402.10052",
        coefficients={"beta": Coefficient(10.0, "how far the label's logit is lowered")},
        settings=FORGET_ONLY,
        terms=undial_terms,
        notes="The mean is over answer tokens; open-unlearning's includes prompt and padding.",
    ),
    Method(
        name="wga",
        formula="mean sg(p^beta) log p(forget) + gamma * NLL(retain)",
        paper="Wang et al. 2025, Rethinking LLM Unlearning Objectives (WGA), arXiv 2502.19301",
        coefficients={"beta": Coefficient(1.0, "power of the weights"), "gamma": GAMMA},
        terms=lambda c: (
            *terms_on("forget", "wga", 1.0, lambda v, t: forget.wga(v, t, beta=c.number("beta"))),
            *nll_terms(c.number("gamma")),
        ),
    ),
    Method(
        name="satimp",
        formula="mean sg(p^beta1 (1 - p)^beta2) log p(forget) + gamma * NLL(retain)",
        paper="Yang et al. 2025, Exploring Criteria of Loss Reweighting (SatImp), arXiv 2505.11953",
        coefficients={
            "beta1": Coefficient(5.0, "power of p"),
            "beta2": Coefficient(1.0, "power of 1 - p"),
            "gamma": GAMMA,
        },
        terms=lambda c: (
            *terms_on(
                "forget",
                "satimp",
                1.0,
                lambda v, t: forget.satimp(v, t, beta1=c.number("beta1"), beta2=c.number("beta2")),
            ),
            *nll_terms(c.number("gamma")),
        ),
        notes="The authors' own code has gamma 0.1, which the recipe sets.",
    ),
    Method(
        name="ce-u",
        formula="mean cross-entropy(softmax(z without y), p(forget))",
        paper="Yang 2025, CE-U: Cross Entropy Unlearning, arXiv 2503.01224",
        settings=FORGET_ONLY,
        terms=ce_u_terms,
        notes="The published runs leave out the first token of each answer.",
    ),
    Method(
        name="pdu",
        formula="mean (max z - mean z)^2 on forget + lambda * (NLL(retain) - limit), lambda by dual ascent",
        paper="Entesari et al. 2025, Constrained Entropic Unlearning (PDU), arXiv 2506.05314",
        coefficients={
            "initial": Coefficient(100.0, "lambda before the first step"),
            "limit": Coefficient(0.3, "largest allowed retain NLL, nats"),
            "dual_step": Coefficient(5.0, "step size of lambda"),
            "warm_up_epochs": Coefficient(5.0, "epochs before lambda moves"),
        },
        control=lambda c: DualAscent(
            "retain_nll",
            initial=c.number("initial"),
            step_size=c.number("dual_step"),
            limit=c.number("limit"),
            warm_up_epochs=int(c.number("warm_up_epochs")),
        ),
        terms=lambda c: (*flattening_terms(c), *nll_terms(1.0)),
        notes="The mean is over answer tokens. open-unlearning masks PDU by labels that are not shifted "
        "(src/trainer/unlearn/pdu.py, commit fdeb28f): it leaves out the position that predicts an answer's first "
        "token and includes the one after its last. In commit 17e8e73 the mean includes prompt and padding.",
    ),
    Method(
        name="sugd",
        formula="mean over rows of mean log p(forget) + gamma * mean over rows of NLL(retain), chunk after chunk",
        paper="Premptis et al. 2025, AILS-NTUA at SemEval-2025 Task 4 (SUGD), arXiv 2503.02443",
        coefficients={"gamma": Coefficient(0.5, GAMMA.meaning)},
        settings={"schedule": "chunked", **ALL_WEIGHTS, "layers": "-8:", "learning_rate_schedule": "linear"},
        terms=lambda c: (
            *terms_on("forget", "ga_by_row", 1.0, forget.gradient_ascent_by_sequence),
            *terms_on("retain", "retain_nll_by_row", c.number("gamma"), retain.nll_by_sequence),
        ),
        notes="Means are by role. The authors' mean is over all rows of a step. With one forget row and n retain rows "
        "in a step, their 0.5 corresponds to gamma n / 2 here.",
    ),
    Method(
        name="agad",
        formula="mean log p(forget) on a chunk, then gamma * NLL(retain) on a part, alternating",
        paper="Premptis et al. 2025, AILS-NTUA at SemEval-2025 Task 4 (AGAD), arXiv 2503.02443",
        coefficients={"gamma": GAMMA},
        settings={"schedule": "annealed", "chunk_size": 64},
        terms=lambda c: (*ga_terms(), *nll_terms(c.number("gamma"))),
        notes="Chunks follow the order of the forget rows. After a last chunk that is not full, there is no phase on a "
        "part of the retain rows, only the phase on all of them.",
    ),
    Method(
        name="npo-ties",
        formula="w1 * NPO(batch) + w2 * KL(retain) + w3 * NLL(retain), twice with other weights, TIES-merged",
        paper="Xu et al. 2025, ZJUKLAB at SemEval-2025 Task 4: Unlearning via Model Merging, arXiv 2503.21088",
        coefficients={
            "beta": BETA,
            "kl": KL,
            "density": Coefficient(0.8, "share of the entries that TIES keeps", is_share=True),
        },
        settings={"keep": "last"},
        runs=(
            {"forget_weight": 0.4, "delta": 0.4, "gamma": 0.2},
            {"forget_weight": 0.3, "delta": 0.3, "gamma": 0.4},
        ),
        finish="ties",
        terms=lambda c: (
            *npo_terms(c, weight=c.number("forget_weight"), dialect="batch"),
            *nll_terms(c.number("gamma")),
            *kl_terms(c.number("delta"), c.choice("kl")),
        ),
        notes="There is one ratio per step. The authors have one per forward pass, one row in their first run.",
    ),
    Method(
        name="constrained",
        formula="mean log p(forget) + m * NLL(retain), m raised as the retain loss grows",
        paper="Agrawal and Huang 2025, SHA256 at SemEval-2025 Task 4: Selective Amnesia, arXiv 2504.12996",
        coefficients={
            "least": Coefficient(1.2, "smallest and initial m"),
            "most": Coefficient(2.3, "largest m"),
        },
        settings={**ALL_WEIGHTS, "target_modules": ("mlp",), "layers": "0:6"},
        control=lambda c: Guarded("retain_nll", least=c.number("least"), most=c.number("most")),
        terms=lambda _: (*ga_terms(), *nll_terms(1.0)),
        notes="m is set once an epoch, from the mean retain loss of the epoch before. The authors' code sets it from "
        "the loss of each batch, rounds it to a tenth, and compares with a first value that is too small by a factor "
        "of the batch size.",
    ),
    Method(
        name="stat",
        formula="NLL(random tokens for forget answers), alternating with gamma * NLL(retain)",
        paper="Chen, Luo and Tang 2025, YNU at SemEval-2025 Task 4 (STAT), ACL Anthology 2025.semeval-1.264",
        coefficients={"gamma": GAMMA},
        settings={"schedule": "alternating"},
        alternatives=Alternatives("random-tokens", replace=True),
        terms=lambda c: (*terms_on("alternative", "random_nll", 1.0, retain.nll), *nll_terms(c.number("gamma"))),
        notes="This follows the paper's abstract; no code and no settings were found.",
    ),
    Method(
        name="llmu",
        formula="forget_weight * log p(forget) + random_weight * NLL(others' answers) + delta * KL(retain), by rows",
        paper="Yao, Xu and Liu 2023, Large Language Model Unlearning, arXiv 2310.10683",
        coefficients={
            "forget_weight": Coefficient(0.5, "weight of the ascent"),
            "random_weight": Coefficient(1.0, "weight of the NLL of answers to other prompts"),
            "delta": DELTA,
            "kl": KL,
        },
        alternatives=Alternatives("other-answers", replace=False, per_row=5),
        terms=lambda c: (
            *terms_on("forget", "ga_by_row", c.number("forget_weight"), forget.gradient_ascent_by_sequence),
            *terms_on("alternative", "random_nll_by_row", c.number("random_weight"), retain.nll_by_sequence),
            *kl_terms(c.number("delta"), c.choice("kl")),
        ),
        notes="The other answers are those of other forget rows. In place of the KL, the authors' code has a "
        "cross-entropy over padded rows. It also includes the prompts in the NLL of the random answers.",
    ),
    Method(
        name="task-vector",
        formula="NLL(forget), then the learned change is subtracted `scale` times",
        paper="Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv 2212.04089",
        coefficients={"scale": Coefficient(1.0, "factor by which the adapter is subtracted")},
        settings={**FORGET_ONLY, "keep": "last"},
        finish="negate",
        terms=lambda _: terms_on("forget", "forget_nll", 1.0, retain.nll),
        notes="An adapter is subtracted; the paper subtracts the difference of all weights.",
    ),
    Method(
        name="quantile",
        formula="mean over rows of (l - T(l_ref))^2 / 2 + gamma * NLL(retain) + delta * KL(retain), l the loss a token",
        paper="none; the map is that of Peyré and Cuturi 2019, Computational Optimal Transport, arXiv 1803.00567",
        coefficients={
            "weight": Coefficient(1.0, "weight of the transport"),
            "gamma": GAMMA,
            "delta": DELTA,
            "kl": KL,
        },
        settings={"span": "text", "general": "holdout"},
        terms=lambda c: (
            *transport_terms(c.number("weight")),
            *nll_terms(c.number("gamma")),
            *kl_terms(c.number("delta"), c.choice("kl")),
        ),
        notes="T takes the sorted losses of the forget rows to the sorted losses of the `--holdout` documents that "
        "choose, both before the first step. The documents are held where they were by `--general holdout`.",
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
