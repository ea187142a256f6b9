"""Print the README's tables from a finished run: python docs/make_tables.py runs/quickstart"""

import json
import sys
from pathlib import Path
from typing import Any


def interval(value: dict[str, float], decimals: int, factor: float = 1) -> str:
    mean, low, high = (f"{factor * value[key]:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def print_table(rows: list[list[str]]) -> None:
    print("|" + "|".join(f" {cell} " for cell in rows[0]) + "|")
    print("|" + "---|" * len(rows[0]))
    for row in rows[1:]:
        print("|" + "|".join(f" {cell} " for cell in row) + "|")
    print()


def image_quality(metrics: dict[str, Any]) -> None:
    rows = [["method", "parameters", "PSNR (dB)", "gain over bicubic (dB)", "SSIM", "flux error (%)"]]
    for row in metrics["rows"]:
        name, count = row["model"], row["parameters"]
        cells = [interval(row["psnr_db"], 2), interval(row["psnr_gain_db"], 2), interval(row["ssim"], 4)]
        rows.append([name, f"{count:,}" if count else "–", *cells, interval(row["absolute_flux_error"], 2, 100)])
    print(f"{metrics['scenes']} test scenes, {metrics['device']}\n")
    print_table(rows)


def transfer(metrics: dict[str, Any]) -> None:
    rows = [["model", "variant", "PSNR (dB)", "SSIM", "flux error (%)"]]
    for row in metrics["rows"]:
        cells = [interval(row["psnr_db"], 2), interval(row["ssim"], 3), interval(row["absolute_flux_error"], 1, 100)]
        rows.append([row["model"], row["variant"], *cells])
    about = f"{metrics['images']} images of {metrics['objects']} objects, {metrics['folds']} folds"
    print(f"{metrics['source']} ({metrics['kind']}): {about}\n")
    print_table(rows)
    for one in metrics["differences"]:
        print(f"- {one['model']}: {one['variant']} minus {one['minus']}: {interval(one['psnr_db'], 2)} dB")
    print()


def classification(metrics: dict[str, Any]) -> None:
    rows = [["representation", "accuracy (%)", "macro AUC", "AUC minus that of LR"]]
    for row in metrics["representations"]:
        against = row["auc_difference_from_lr"]
        cells = [interval(row["accuracy"], 1, 100), interval(row["auc"], 3)]
        rows.append([row["name"], *cells, "–" if row["name"] == "lr" else interval(against, 3)])
    for row in metrics["controls"]:
        if "auc" in row:
            rows.append([f"({row['name']})", interval(row["accuracy"], 1, 100), interval(row["auc"], 3), ""])
    scenes = metrics["scenes"]
    print(f"{scenes['train']} scenes to train on, {scenes['test']} to test on, {metrics['seeds']} seeds\n")
    print_table(rows)


def main() -> None:
    run = Path(sys.argv[1])
    for stage, show in (("evaluate", image_quality), ("transfer", transfer), ("classify", classification)):
        path = run / stage / "metrics.json"
        if path.is_file():
            show(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
