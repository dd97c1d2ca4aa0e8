#!/usr/bin/env bash
# Pretraining on all workers of a Cloud TPU slice, with gcloud on your own machine.
#
# Create the slice, as a queued resource or at once:
#
#   gcloud compute tpus queued-resources create NAME --node-id NAME --zone ZONE \
#       --accelerator-type v5litepod-64 --runtime-version v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm create NAME --zone ZONE \
#       --accelerator-type v5litepod-64 --version v2-alpha-tpuv5-lite
#
# Data and runs are on a file system that all workers share, with rename and flock: a
# Filestore instance, say, where you may write and `elmojax prepare` has run once. Then:
#
#   python -m pip wheel --no-deps --wheel-dir dist .
#   tpu-pod.sh install NAME ZONE dist/elmojax-0.1.0-py3-none-any.whl 10.0.0.2:/share
#   tpu-pod.sh start NAME ZONE --data /mnt/shared/train --heldout /mnt/shared/heldout \
#       --workdir /mnt/shared/runs/original --preset original --rows 1024
#   tpu-pod.sh log NAME ZONE
#   tpu-pod.sh stop NAME ZONE
#
# `start` runs `loop` on every worker, and your connection may go away. It starts
# elmojax, and again after status 75 (a process was lost), 143 (saved after SIGTERM) and
# other numbers above 128 but 130 (killed): RESTARTS times (100), PAUSE seconds apart
# (30), but only STALLED times (3) one after the other without a new checkpoint: what
# crashes at the same place each time ends with its status. All others end it: 0 done; 2
# bad input, named in the log. `stop` saves and ends.
# After the maintenance of a worker call `start` again; where the loop still runs,
# nothing happens. A slice that was taken away is created and installed again; the run
# goes on.
#
# JAX finds coordinator, count and number of the processes in the slice's metadata.

set -euo pipefail

usage() {
    cat >&2 <<'USAGE'
usage: tpu-pod.sh install NAME ZONE WHEEL SERVER:/SHARE
       tpu-pod.sh start NAME ZONE FLAGS OF elmojax pretrain
       tpu-pod.sh log NAME ZONE
       tpu-pod.sh stop NAME ZONE
USAGE
    exit 2
}

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

# Python comes with uv: elmojax needs 3.11, and images of TPU VMs may be older.
install() {
    local wheel=$1 share=$2
    gcloud compute tpus tpu-vm scp "$wheel" "${BASH_SOURCE[0]}" "$name:" \
        --zone "$zone" --worker=all
    on_all_workers "set -e
sudo apt-get -q -o DPkg::Lock::Timeout=300 update
sudo apt-get -q -o DPkg::Lock::Timeout=300 install -y nfs-common
sudo mkdir -p /mnt/shared
mountpoint -q /mnt/shared || sudo mount -t nfs $(printf %q "$share") /mnt/shared
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv
~/.local/bin/uv venv -q --clear --python 3.12 ~/elmojax
~/.local/bin/uv pip install -q --python ~/elmojax $(printf %q "./${wheel##*/}[tpu]")"
}

# Its own session: whoever ends the connection does not end the loop, and `stop` can
# send one SIGTERM to loop and elmojax alike (a second would not let it save).
start() {
    on_all_workers "PATH=~/elmojax/bin:\$PATH nohup setsid \
bash tpu-pod.sh loop$(printf ' %q' "$@") >>elmojax.log 2>&1 </dev/null &"
}

stop() {
    # shellcheck disable=SC2016 # the worker expands it
    on_all_workers 'flock -n elmojax.lock true || kill -TERM -- "-$(cat elmojax.pid)"'
}

starts_again() {
    [ "$1" -eq 75 ] || { [ "$1" -gt 128 ] && [ "$1" -ne 130 ]; }
}

# The newest checkpoint of the run that the flags name.
saved() {
    local workdir='' preset=mini flag before=''
    for flag in "$@"; do
        case $before in --workdir) workdir=$flag ;; --preset) preset=$flag ;; esac
        case $flag in --workdir=*) workdir=${flag#*=} ;; --preset=*) preset=${flag#*=} ;; esac
        before=$flag
    done
    : "${workdir:=runs/$preset}"
    { find "$workdir/checkpoints" -maxdepth 1 -name '[0-9]*' 2>/dev/null || true; } |
        sort -V | tail -n 1
}

loop() {
    local status restarts=0 stalled=0 newest=none stopping=
    exec 9>>elmojax.lock
    if ! flock -n 9; then
        echo "tpu-pod.sh: elmojax already runs here."
        exit 0
    fi
    echo $$ >elmojax.pid
    trap 'stopping=yes' INT TERM
    while true; do
        status=0
        elmojax pretrain --distributed "$@" 9>&- || status=$?
        echo "tpu-pod.sh: status $status after $restarts restarts."
        if ! starts_again "$status" || [ "$restarts" -ge "${RESTARTS:-100}" ]; then
            exit "$status"
        fi
        if [ "$(saved "$@")" = "$newest" ]; then
            stalled=$((stalled + 1))
        else
            stalled=0 newest=$(saved "$@")
        fi
        if [ "$stalled" -ge "${STALLED:-3}" ]; then
            echo "tpu-pod.sh: $stalled restarts without a new checkpoint; see above."
            exit "$status"
        fi
        if [ -z "$stopping" ]; then
            sleep "${PAUSE:-30}" 9>&- || true
        fi
        if [ -n "$stopping" ]; then
            exit "$status"
        fi
        restarts=$((restarts + 1))
    done
}

action=${1:-}
if [ "$action" = loop ]; then
    loop "${@:2}"
fi
[ $# -ge 3 ] || usage
name=$2 zone=$3
shift 3
case $action:$# in
    install:2) install "$@" ;;
    start:[1-9]*) start "$@" ;;
    log:0) on_all_workers "tail -n 20 elmojax.log" ;;
    stop:0) stop ;;
    *) usage ;;
esac
