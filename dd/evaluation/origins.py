"""The origin of each protocol, in a few words."""

ORIGINS = {
    "quick": "ours, for 2 cores; the default",
    "mtt": "the matching family: DSA, DM, MTT, FTD, TESLA; the default of the papers' data sets",
    "datm": "DATM",
    "dc": "DC, without augmentation",
    "datadam": "DataDAM",
    "quick-soft": "ours, for 2 cores, with a teacher's labels of views",
    "sre2l": "SRe2L on ImageNet-1K",
    "sre2l-tiny": "SRe2L on Tiny-ImageNet",
    "sre2l-cifar": "SRe2L on CIFAR-100",
    "cda": "CDA",
    "cvdd": "CV-DD and SRe2L++",
    "mealv2": "MEAL V2, with labels.ensemble=prob_mean",
    "rded": "RDED",
    "rethinkdc-soft": "rethinkdc --soft, labels by torchvision's resnet18",
    "rethinkdc-hard": "rethinkdc --hard, the images' own classes",
    "ncfm": "NCFM",
    "ast": "AST",
    "smoke": "ours, to see that everything works",
}
