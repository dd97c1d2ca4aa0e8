#!/usr/bin/env bash
# Several processes on this machine, to try out distributed training without a cluster.
#
#   experiments/launch/local.sh 2 4 --workdir runs/two --rows 64 --steps 100
#
# starts two processes of four virtual CPU devices each: a mesh of eight. What follows
# goes to `elmojax pretrain` in each of them.
#
# Ctrl-C and SIGTERM reach every process once: they save and end with 130 or 143. When
# one ends with another status than 0, the others are ended too, and its status is the
# status of all. They have GRACE seconds (120), then they are killed; a second Ctrl-C
# kills them at once. PORT chooses the coordinator's port (a free one).

set -euo pipefail

usage() {
    echo "usage: local.sh PROCESSES DEVICES [FLAGS OF elmojax pretrain]" >&2
    exit 2
}

[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ ]] || usage
processes=$1
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$2
shift 2

port=${PORT:-$(python3 -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])')}

running=()
deadline=0 # in SECONDS; 0 = nobody has been asked to end

end_all() {
    # A second signal would end a process that is saving.
    if [ "$deadline" -eq 0 ]; then
        deadline=$((SECONDS + ${GRACE:-120}))
        kill -s "$1" "${running[@]}" 2>/dev/null || true
    fi
}
trap 'if [ "$deadline" -eq 0 ]; then end_all INT; else deadline=$SECONDS; fi' INT
trap 'end_all TERM' TERM

# Job control puts each into its own process group, so that Ctrl-C comes only from here.
set -m
for ((i = 0; i < processes && deadline == 0; i++)); do
    elmojax pretrain --distributed --coordinator "127.0.0.1:$port" \
        --process-id "$i" --process-count "$processes" "$@" </dev/null &
    running[i]=$!
done
set +m

status=0
while [ ${#running[@]} -gt 0 ]; do
    sleep 0.2 || true
    for i in "${!running[@]}"; do
        if kill -0 "${running[i]}" 2>/dev/null; then
            continue
        fi
        ended=0
        wait "${running[i]}" || ended=$?
        unset "running[i]"
        if [ "$ended" -ne 0 ] && [ "$status" -eq 0 ]; then
            status=$ended
            echo "local.sh: process $i ended with status $ended." >&2
        fi
    done
    if [ "$status" -ne 0 ] && [ ${#running[@]} -gt 0 ]; then
        end_all TERM
    fi
    if [ "$deadline" -ne 0 ] && [ "$SECONDS" -ge "$deadline" ]; then
        kill -s KILL -- "${running[@]/#/-}" 2>/dev/null || true # with their children
    fi
done
exit "$status"
