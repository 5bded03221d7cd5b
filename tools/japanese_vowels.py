"""Make src/unrolled/lab/data/japanese_vowels.npz from the .ts files in the wheel of `aeon`.

    pip download --no-deps aeon && unzip aeon-*.whl '*JapaneseVowels*'
    python tools/japanese_vowels.py aeon/datasets/data/JapaneseVowels

The file keeps the original split and order: for each split the utterances' frames one after the
other, (frames, 12) float32, the length of each utterance, and its speaker counted from 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "src/unrolled/lab/data/japanese_vowels.npz"


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the frames, the lengths and the speakers of one .ts file."""
    utterances, speakers = [], []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[lines.index("@data") + 1 :]:
        *coefficients, speaker = line.strip().split(":")
        series = np.array([row.split(",") for row in coefficients], dtype=np.float32)
        utterances.append(series.T)  # (frames, 12)
        speakers.append(int(speaker) - 1)
    lengths = np.array([len(utterance) for utterance in utterances], dtype=np.int32)
    return np.concatenate(utterances), lengths, np.array(speakers, dtype=np.int32)


def main() -> None:
    folder = Path(sys.argv[1])
    arrays = {}
    for split in ("train", "test"):
        frames, lengths, speakers = read(folder / f"JapaneseVowels_{split.upper()}.ts")
        arrays |= {
            f"{split}_frames": frames,
            f"{split}_lengths": lengths,
            f"{split}_speakers": speakers,
        }
    np.savez_compressed(TARGET, **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
