"""What the numbers say, in sentences that claim no more than their intervals allow."""

from typing import Any

Numbers = dict[str, Any]


def with_interval(value: Numbers, decimals: int, signed: bool = False) -> str:
    """ "+0.010 [−0.030, +0.050]" """
    sign = "+" if signed else ""
    mean, low, high = (f"{value[key]:{sign}.{decimals}f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def image_verdict(evaluate: Numbers) -> list[str]:
    """Does the best network beat bicubic interpolation and the controls on simulated lenses it has not seen?"""
    rows = {row["model"]: row for row in evaluate["rows"]}
    best = evaluate["best_model"]
    if best is None:
        return ["No trained network was there to evaluate."]
    gain = rows[best]["psnr_gain_db"]
    text = f"{with_interval(gain, 2, signed=True)} dB in PSNR against bicubic interpolation"
    scenes = f"on {evaluate['scenes']} simulated lenses that no network was trained on"
    if gain["low"] > 0:
        sentences = [f"Super-resolution by {best} gains {text} {scenes}."]
    elif gain["high"] < 0:
        sentences = [f"Super-resolution by {best} loses: {text} {scenes}."]
    else:
        sentences = [f"No evidence that super-resolution by {best} beats bicubic interpolation: {text} {scenes}."]
    controls = [name for name, row in rows.items() if row["kind"] == "baseline" and name not in ("bilinear", "bicubic")]
    if controls:
        best_control = max(controls, key=lambda name: rows[name]["psnr_gain_db"]["mean"])
        control_gain = rows[best_control]["psnr_gain_db"]
        sentences.append(
            f"The best method without learning, {best_control}, changes it by "
            f"{with_interval(control_gain, 2, signed=True)} dB."
        )
    return sentences


def transfer_verdict(transfer: Numbers) -> list[str]:
    """Is a fine-tuned network better than bicubic, and than one that was not pretrained? From paired differences."""
    gains = {(one["model"], one["minus"]): one["psnr_db"] for one in transfer["differences"]}
    sentences = []
    for model in dict.fromkeys(model for model, _ in gains):
        pretraining, total = gains[model, "unpretrained"], gains[model, "bicubic"]
        if pretraining["low"] > 0:
            finding = f"Pretraining on simulations helps {model}"
        elif pretraining["high"] < 0:
            finding = f"Pretraining on simulations harms {model}"
        else:
            finding = f"No evidence that pretraining on simulations helps {model}"
        sentences.append(
            f"{finding}: fine-tuned, its PSNR differs by {with_interval(pretraining, 2, signed=True)} dB from "
            f"unpretrained, and by {with_interval(total, 2, signed=True)} dB from bicubic, on {transfer['objects']} "
            f"held-out objects ({transfer['kind']})."
        )
    return sentences


def classification_verdict(classify: Numbers) -> list[str]:
    """Does super-resolution help to tell dark matter apart? Warnings first, then the answer, then what limits it."""
    rows, controls = classify["representations"], classify["controls"]
    return [
        *_warnings(controls),
        _against_chance(rows, classify["scenes"]["test"], classify["seeds"]),
        *_gains(rows),
        *_room(rows),
    ]


def _warnings(controls: list[Numbers]) -> list[str]:
    sentences = []
    for control in controls:
        if "auc" not in control or control["auc"]["low"] <= 0.5 <= control["auc"]["high"]:
            continue
        figure = f"AUC {with_interval(control['auc'], 3)}"
        if control["name"] == "shuffled labels":
            sentences.append(
                f"Caution: trained on shuffled labels the classifier has {figure}, not the 0.5 of no information; by "
                "chance alone this happens in one run of twenty."
            )
        elif control["auc"]["low"] > 0.5:
            sentences.append(
                f"Caution: {control['name']} alone tells the classes apart with {figure}; success at this level needs "
                "no substructure."
            )
    return sentences


def _against_chance(rows: list[Numbers], scenes: int, seeds: int) -> str:
    above = [row for row in rows if row["auc"]["low"] > 0.5]
    rest = [row for row in rows if row["auc"]["low"] <= 0.5]
    size = f"{scenes} test scenes, {seeds} training seed{'s' if seeds > 1 else ''}"

    def listed(some: list[Numbers]) -> str:
        return ", ".join(f"{row['name']} {with_interval(row['auc'], 3)}" for row in some)

    if not above:
        return f"No representation is distinguishable from chance at this size ({size}): macro AUC {listed(rest)}."
    sentence = f"Above chance (macro AUC 0.5; {size}): {listed(above)}."
    return sentence + (f" Not distinguishable from chance: {listed(rest)}." if rest else "")


def _gains(rows: list[Numbers]) -> list[str]:
    """The models by what is found of them, the strongest finding first."""
    models = [row for row in rows if row["kind"] == "super-resolved"]
    findings: dict[str, list[Numbers]] = {
        "Super-resolution helps this classifier": [],
        "Super-resolution changes the AUC, but not to above chance": [],
        "Super-resolution harms this classifier": [],
        f"Suggestive, but no evidence once {len(models)} models are compared at a time": [],
        "No evidence that super-resolution helps": [],
    }
    helps, changes, harms, suggestive, nothing = findings.values()
    for row in models:
        difference = row["auc_difference_from_lr"]
        if difference["low_jointly"] > 0:
            (helps if row["auc"]["low"] > 0.5 else changes).append(row)
        elif difference["high_jointly"] < 0:
            harms.append(row)
        elif difference["low"] > 0 or difference["high"] < 0:
            suggestive.append(row)
        else:
            nothing.append(row)
    sentences = [f"{finding}: {_differences(some)}." for finding, some in findings.items() if some]
    return sentences or ["No trained network was there to check."]


def _room(rows: list[Numbers]) -> list[str]:
    """What high resolution itself gains: the room that super-resolution could fill."""
    real = [row for row in rows if row["kind"] == "high resolution"]
    better = [row for row in real if row["auc_difference_from_lr"]["low_jointly"] > 0 and row["auc"]["low"] > 0.5]
    if better:
        return [f"Images as sharp as HR help, so there is room: {_differences(better)}."]
    return [
        f"Not even true high resolution is shown to help ({_differences(real)}): at this size the check has little "
        "room to show that super-resolution does."
    ]


def _differences(rows: list[Numbers]) -> str:
    listed = (f"{row['name']} {with_interval(row['auc_difference_from_lr'], 3, signed=True)}" for row in rows)
    return ", ".join(listed) + " in AUC against interpolated LR"
