#!/usr/bin/env bash
# Everything that is to be known of elmojax on a GPU, in one command of under 9 minutes:
# what `on_gpu.py` beside this measures. Needs Python 3.11 or later with jax for the GPU,
# flax, optax, orbax-checkpoint and h5py, and torch for the comparison with PyTorch.
#
#     OUT=results experiments/benchmarks/on_gpu.sh
#     experiments/benchmarks/on_gpu.sh --smoke        # tiny sizes, a minute on a CPU
#
# Results appear in $OUT (else in a temporary directory, which is printed) as they come:
# on_gpu.json, on_gpu.md, and on_gpu.log with what the programs said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${OUT:-$(mktemp -d "${TMPDIR:-/tmp}/on_gpu.XXXXXX")}
mkdir -p "$out"
echo "Results go to $out"
# Compilation is measured, so nothing is taken from a cache of an earlier run.
export JAX_ENABLE_COMPILATION_CACHE=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD:$PWD/experiments${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" experiments/benchmarks/on_gpu.py --out "$out" "$@"
