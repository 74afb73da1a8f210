#!/usr/bin/env bash
# Makes the environments that the benchmarks compare with, one per set of packages that can live together.
#   benchmarks/make_peers.sh DIR        then   make bench PEERS=DIR
# torch goes in first, as a CPU build; a set that would pull a CUDA build afterwards is refused.
set -euo pipefail
root=${1:?usage: make_peers.sh DIR}
python=${PYTHON:-$("$(dirname "$0")/../.ci/find-python" 3.11 3.11 pyenv)}
mkdir -p "$root"
pins=$root/constraints.txt
echo "torch==2.13.0" >"$pins"

make_peer() { # name packages...
  local name=$1 pip="$root/$1/bin/python -m pip"
  shift
  [ -x "$root/$name/bin/python" ] || "$python" -m venv "$root/$name"
  $pip install -q -U pip
  $pip install -q -c "$pins" torch numpy
  if $pip install --dry-run -c "$pins" "$@" 2>&1 | grep -qi nvidia; then
    echo "$name: would pull CUDA packages, refused" >&2
    return 1
  fi
  $pip install -q -c "$pins" "$@"
  echo "$name: made"
}

make_peer v transformers transformer-lens nnsight eai-sparsify
make_peer v_sae sae-lens
make_peer v_ct circuit-tracer==0.5.0 "transformer-lens<4" "datasets<4.5"
make_peer v_dl dictionary-learning
# sae-dashboard needs NumPy 1, which a later pyarrow refuses.
make_peer v_dashboard sae-dashboard "pyarrow<21"
"$root/v_dashboard/bin/python" -m pip uninstall -q -y torchvision torchaudio
# dictionary-learning pulls a torchvision built for CUDA, which transformers then fails to import.
"$root/v_dl/bin/python" -m pip uninstall -q -y torchvision
