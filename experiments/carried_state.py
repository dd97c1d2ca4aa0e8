"""What carried, warm and zero LSTM state do to vectors, in numbers.

    python experiments/carried_state.py MODEL TEXT

Reads the first 200 sentences of TEXT in four ways: each from zeros, each from the warm
state of the sentence marks alone, each from the warm state of other sentences of the
text, and one after the other with the state carried, as bilm-tf and AllenNLP do. Prints
the mean absolute difference from the carried vectors, a layer a column, and how the
difference of one sentence from itself shrinks when it is read again and again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import elmojax
from elmojax.text.files import read_lines

SENTENCES, LENGTH = 200, 40


def main(model: str, text: str) -> None:
    params = elmojax.load(model)
    lines = [words[:LENGTH] for _, words in read_lines(Path(text)) if words]
    batch = lines[: SENTENCES + 50]
    tokens = jnp.asarray(elmojax.batch_to_ids(batch))
    read, other = tokens[:SENTENCES], tokens[SENTENCES:]
    encode = jax.jit(elmojax.encode)

    def one_by_one(params: elmojax.ElmoParams, carry: bool) -> np.ndarray:
        state, layers = None, []
        for sentence in read:
            found = encode(params, sentence[None], state)
            layers.append(np.asarray(found.layers[0]))
            state = found.state if carry else None
        return np.stack(layers)

    carried = one_by_one(params, carry=True)
    mask = np.asarray((read > 0).any(-1))[:, None, :, None]
    share = mask.sum() * carried.shape[-1]
    size = np.abs(carried * mask).sum((0, 2, 3)) / share
    print("mean size of a value  ", *(f"{s:10.5f}" for s in size))
    for name, start in (
        ("zero                  ", params),
        ("warm, sentence marks  ", elmojax.warm(params)),
        ("warm, other sentences ", elmojax.warm(params, other)),
    ):
        difference = np.abs(one_by_one(start, carry=False) - carried) * mask
        print(name, *(f"{d:10.5f}" for d in difference.sum((0, 2, 3)) / share))
    print("\nthe first sentence again and again, difference from the time before:")
    state, before = None, None
    for _ in range(8):
        found = encode(params, read[:1], state)
        now, state = np.asarray(found.layers[0, 1:]), found.state
        if before is not None:
            print(f"{np.abs(now - before).mean():.2e}", end="  ")
        before = now
    print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
