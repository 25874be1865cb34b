"""The origin of each protocol: what it is for, its family, and the source of its values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where a protocol is from.

    Attributes:
        of: the methods or benchmark that use it, in a few words.
        family: "ours", "matching", "decoupled", "representation", "coreset" or "benchmark" (one recipe for sets of any
            method).
        source: the paper and what the values were read from.
        differs: what the source does otherwise or leaves open; empty if nothing is known.
        best_on_test: what the source chose by test accuracy for the numbers that it reports; empty if nothing is known.
    """

    of: str
    family: str
    source: str
    differs: str = ""
    best_on_test: str = ""


_SRE2L = "Yin et al., NeurIPS 2023, official scripts"
_RETHINKDC = "Yang et al. 2025 (arXiv 2502.06434), official code"
_HARD_TRUTHS = 'Dey et al., "Hard Truths about Soft Labels", CVPR 2026'

ORIGINS = {
    "quick": Origin("ours, for 2 cores; the default", "ours", "measured to separate sets of fashion-mini"),
    "mtt": Origin(
        "the matching family: DSA, DM, MTT, FTD, TESLA; the default of the papers' data sets",
        "matching",
        "Cazenavette et al., CVPR 2022, official evaluation",
        best_on_test="the best checkpoint of the distillation",
    ),
    "datm": Origin(
        "DATM",
        "matching",
        "Guo et al., ICLR 2024, official configurations",
        best_on_test="the best checkpoint of the distillation",
    ),
    "dc": Origin("DC, without augmentation", "matching", "Zhao et al., ICLR 2021, official evaluation"),
    "datadam": Origin(
        "DataDAM",
        "matching",
        "Sajedi et al., ICCV 2023, official code",
        best_on_test="the best checkpoint of the distillation",
    ),
    "quick-static": Origin(
        "ours, for 2 cores, with one teacher's label for each image",
        "ours",
        '"quick" at the temperature of "quick-soft"',
    ),
    "quick-soft": Origin(
        "ours, for 2 cores, with a teacher's labels of views", "ours", "measured to separate sets in half a minute"
    ),
    "sre2l": Origin(
        "SRe2L on ImageNet-1K",
        "decoupled",
        _SRE2L,
        best_on_test="the best of tests at every 10th epoch and the last",
    ),
    "sre2l-tiny": Origin("SRe2L on Tiny-ImageNet", "decoupled", _SRE2L),
    "sre2l-cifar": Origin("SRe2L on CIFAR-100", "decoupled", _SRE2L),
    "cda": Origin("CDA", "decoupled", "Yin & Shen, TMLR 2024, official scripts"),
    "cvdd": Origin("CV-DD and SRe2L++", "decoupled", "Cui et al. 2025 (arXiv 2501.07575), official code"),
    "mealv2": Origin(
        "MEAL V2, with labels.ensemble=prob_mean",
        "decoupled",
        "Shen & Savvides 2020 (arXiv 2009.08453), official code",
        "the source starts from a pretrained student",
    ),
    "rded": Origin(
        "RDED",
        "decoupled",
        "Sun et al., CVPR 2024, official code",
        "the source varies the batch with data set and ipc",
        "the best of tests at every 10th epoch of the last fifth",
    ),
    "krrst": Origin(
        "KRR-ST: students regress representations, linear heads on their features are scored",
        "representation",
        "Lee et al., ICLR 2024 (arXiv 2310.06511), official code",
        "the source's linear heads are trained by SGD, lr 0.2, 5,000 steps of batch 512; ours are ridge regressions",
    ),
    "lgm": Origin(
        "LGM and CLP-DD: linear heads on a frozen encoder",
        "representation",
        "Cazenavette et al., NeurIPS 2025 (arXiv 2511.16674), official code",
        "the source lowers the rate once an epoch, and takes 100 epochs for all real images",
    ),
    "rd3": Origin(
        "RD3, one recipe for sets of decoupled methods",
        "benchmark",
        "arXiv 2509.19743, ICLR 2026, from secondary sources",
        "students other than a ResNet-18 take eval.cosine=2; temperature 20, weight decay .01 and the test images' "
        "resize are assumed, as RDED has them; its teacher is a single ResNet-18",
    ),
    "rethinkdc-soft": Origin(
        "rethinkdc --soft, labels by torchvision's resnet18",
        "benchmark",
        _RETHINKDC,
        "the source changes lr once an epoch; here at every step",
    ),
    "rethinkdc-hard": Origin(
        "rethinkdc --hard, the images' own classes",
        "benchmark",
        _RETHINKDC,
        "the source changes lr once an epoch; here at every step",
    ),
    "hardtruths-hl": Origin(
        "Hard Truths, hard labels, small images",
        "benchmark",
        f"{_HARD_TRUTHS}, from secondary sources",
        "momentum, weight decay and the factor of lr are assumed: .9, 5e-4, .1",
    ),
    "hardtruths-sl": Origin(
        "Hard Truths, one teacher's label for each image, small images",
        "benchmark",
        f"{_HARD_TRUTHS}, from secondary sources",
        "weight decay .01 (AdamW's default), the factor T^2 of the loss and the teacher are assumed; labels are fixed, "
        "images are augmented",
    ),
    "ncfm": Origin(
        "NCFM",
        "matching",
        "Wang et al., CVPR 2025, official code",
        best_on_test="the best of tests at every 100th epoch",
    ),
    "ast": Origin(
        "AST",
        "matching",
        "Shen et al. 2023 (arXiv 2310.10541), scripts",
        best_on_test="the best of tests at every 20th epoch",
    ),
    "deepcore": Origin(
        "coresets: DeepCore's comparison of selection methods",
        "coreset",
        "Guo et al., DEXA 2022, official code",
        "the source pads CIFAR's images by reflection",
        "the best epoch",
    ),
    "rs2": Origin(
        "RS2, whose rounds are the passes",
        "coreset",
        "Okanovic et al., ICLR 2024, official code",
        best_on_test="the best epoch",
    ),
    "dq": Origin(
        "DQ on CIFAR-10",
        "coreset",
        "Zhou et al., ICCV 2023, official code",
        "the source changes lr once an epoch, and takes batches of 16 at keep ratios up to 10 %",
        "the best epoch",
    ),
    "softlabel": Origin(
        '"A Label is Worth a Thousand Images", small images',
        "coreset",
        "Qin et al., NeurIPS 2024, official code",
        "the source whitens CIFAR-10, and has other rates and AdamW for ResNets",
        "the best of tests at every 200th epoch",
    ),
    "smoke": Origin("ours, to see that everything works", "ours", "as short as results still differ from chance"),
}
