"""The biLM in PyTorch, as well as its own parts allow: a peer of elmojax in training.

The same encoder on a table of words, `nn.LSTM(proj_size=...)` (no clips) or a loop with
clips, `nn.AdaptiveLogSoftmaxWithLoss`, Adagrad. bfloat16 through autocast on
accelerators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig
from elmojax.text.characters import PADDING


class ClippedLstm(nn.Module):
    """One direction of a layer, step by step: called as `nn.LSTM`, with the clips."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.dim, self.clip = config.dim, config.cell_clip
        self.width, self.projection_clip = config.projection, config.projection_clip
        self.input = nn.Linear(self.width, 4 * self.dim)
        self.recurrent = nn.Linear(self.width, 4 * self.dim, bias=False)
        self.projection = nn.Linear(self.dim, self.width, bias=False)

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            rows = inputs.shape[1]
            state = inputs.new_zeros(rows, self.width), inputs.new_zeros(rows, self.dim)
        hidden, cell = state
        outputs = []
        for x in inputs:
            gates = self.input(x) + self.recurrent(hidden)
            keep_in, forget, new, out = gates.chunk(4, 1)
            new = torch.sigmoid(keep_in) * torch.tanh(new)
            cell = torch.sigmoid(forget) * cell + new
            cell = cell.clamp(-self.clip, self.clip)
            hidden = self.projection(torch.sigmoid(out) * torch.tanh(cell))
            hidden = hidden.clamp(-self.projection_clip, self.projection_clip)
            outputs.append(hidden)
        return torch.stack(outputs), (hidden, cell)


class TorchBiLM(nn.Module):
    def __init__(
        self,
        config: ElmoConfig,
        vocabulary: int,
        cutoffs: tuple[int, ...],
        div_value: float,
        clips: bool = False,
    ) -> None:
        super().__init__()
        encoder, lstm = config.encoder, config.lstm
        assert isinstance(encoder, CharCnnConfig)
        self.skip = lstm.skip_connections
        dim = encoder.embedding_dim
        self.table = nn.Embedding(encoder.characters + 1, dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim, count, width) for width, count in encoder.filters
        )
        width = encoder.filter_count
        self.highways = nn.ModuleList(
            nn.Linear(width, 2 * width) for _ in range(encoder.highway_layers)
        )
        self.projection = nn.Linear(width, lstm.projection)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                ClippedLstm(lstm)
                if clips
                else nn.LSTM(lstm.projection, lstm.dim, proj_size=lstm.projection)
                for _ in range(2)
            )
            for _ in range(lstm.layers)
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.AdaptiveLogSoftmaxWithLoss(
            lstm.projection, vocabulary, list(cutoffs), div_value, head_bias=True
        )

    def encode(self, words: Tensor) -> Tensor:
        x = self.table(words).transpose(1, 2)
        x = torch.cat([torch.relu(c(x).amax(2)) for c in self.convolutions], 1)
        for highway in self.highways:
            gate, new = highway(x).chunk(2, 1)
            gate = torch.sigmoid(gate)
            x = gate * torch.relu(new) + (1 - gate) * x
        return self.projection(x)

    def forward(
        self, words: Tensor, inputs: Tensor, targets: Tensor, state: list[Any]
    ) -> tuple[Tensor, list[Any]]:
        x = self.encode(words)[inputs]  # two, window, rows, projection
        after = []
        for number, directions in enumerate(self.layers):
            x = self.dropout(x)
            outputs = []
            for n, lstm in enumerate(directions):
                y, last = lstm(x[n], state[2 * number + n] if state else None)
                after.append(tuple(s.detach() for s in last))
                outputs.append(y)
            new = torch.stack(outputs)
            x = new + x if number and self.skip else new
        flat = self.dropout(x).flatten(0, 2)
        return self.head(flat.float(), targets.flatten()).loss, after


def one_table(tables: Any) -> np.ndarray:
    """Tables of short and of long words of one shard as one, in full width."""
    full = tables[-1].shape[1]
    wide = (
        np.pad(table, ((0, 0), (0, full - table.shape[1])), constant_values=PADDING + 1)
        for table in tables
    )
    return np.concatenate(list(wide))


def torch_step(model: TorchBiLM, rows: int, half: bool) -> Callable[[Any], Tensor]:
    """One training step on a batch of elmojax, state carried; returns the loss.

    `half` counts on accelerators only: PyTorch's adaptive softmax fails under the
    autocast of a CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimizer = torch.optim.Adagrad(
        model.parameters(), 0.2, initial_accumulator_value=1
    )
    state: list[Any] = []

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).long().to(device)

    def step(batch: Any) -> Tensor:
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = (a.transpose(0, 2, 1) for a in (batch.inputs, batch.targets))
        with torch.autocast(device, torch.bfloat16, enabled=half and device != "cpu"):
            words = move(one_table(batch.words))
            loss, state = model(words, move(inputs), move(targets), state)
        (loss * batch.inputs.shape[2]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        return loss

    return step
