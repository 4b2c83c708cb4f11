#!/usr/bin/env bash
# Build the image and get a prediction from a container, without a Docker engine (Debian, root):
#
#   docker/build_and_run.sh > transcript.md
#
# The transcript (Markdown) is on stdout, the log of the build and of the server on stderr.
#
#   BASE_IMAGE  base image; without it, debootstrap makes a minimal Debian with Python
#   WORK_DIR    folder of images, where the next run finds its base; without it, all are removed
#   PORT        port of the container, which shares the host's network (8000)
#   ABMLL_*     settings of the server
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BASE_IMAGE=${BASE_IMAGE:-}
PORT=${PORT:-8000}
IMAGE=localhost/abmll-serve
STAND_IN=localhost/python-base
READY_SECONDS=600

work=${WORK_DIR:-$(mktemp -d)}
mkdir -p "$work"
exchange=$(mktemp -d "$work/exchange.XXXXXX")
pip_mounts=()
export ABMLL_INSECURE=${ABMLL_INSECURE:-true}  # it answers this script alone, and not for long
mapfile -t settings < <(env | grep '^ABMLL_' || true)
runner=

log() { printf -- '--- %s\n' "$*" >&2; }
seconds_since() { python3 -c "import time; print(f'{time.time() - $1:.1f}')"; }

# vfs and chroot need root but no kernel feature; with --root all files are in one folder.
storage() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

cleanup() {
    [ -z "$runner" ] || stop_server || true
    storage rm --all >/dev/null 2>&1 || true
    storage rmi --force "$IMAGE" >/dev/null 2>&1 || true
    storage rmi --prune >/dev/null 2>&1 || true
    rm -rf "$exchange" "$work/rootfs" "$work/pip.conf"
    [ -n "${WORK_DIR:-}" ] || rm -rf --one-file-system "$work"
}
trap cleanup EXIT

need_tools() {
    local missing=()
    command -v buildah >/dev/null || missing+=(buildah)
    [ -n "$BASE_IMAGE" ] || command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v curl >/dev/null || missing+=(curl)
    [ ${#missing[@]} -eq 0 ] && return
    log "installing ${missing[*]}"
    { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } >&2
}

# Make a base image to stand in for python:3.11-slim. `buildah mount` on vfs is a plain folder, so a
# copy fills the image.
make_base() {
    storage inspect --type image "$STAND_IN" >/dev/null 2>&1 && return
    log "making the base image with debootstrap"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        bookworm "$work/rootfs" >&2
    local container
    container=$(storage from scratch)
    cp -a "$work/rootfs/." "$(storage mount "$container")/"
    storage umount "$container" >&2
    storage commit --rm "$container" "$STAND_IN" >&2
    rm -rf "$work/rootfs"
}

# Write the settings of `pip config list` (files and environment) as one pip.conf, for the build
# only. Print the local files and folders that it names, one a line.
host_pip_settings() {
    python3 - "$work/pip.conf" <<'PYTHON'
import ast, pathlib, subprocess, sys

lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
settings = {}
for line in sorted(lines.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
    name, _, value = line.partition("=")
    settings[name.rsplit(".", 1)[1]] = ast.literal_eval(value)
pathlib.Path(sys.argv[1]).write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
words = (word for value in settings.values() for word in value.split())
# An index on disk (file://.../simple) links to files beside it, so its parent must be mounted.
paths = (pathlib.Path(w[7:]).parent if w.startswith("file://") else pathlib.Path(w) for w in words)
print(*sorted({str(p) for p in paths if p.is_absolute() and p.exists()}), sep="\n")
PYTHON
}

# The build has those settings, and so has the server, whose first start fetches the base with pip.
build_image() {
    local path
    while read -r path; do
        [ -z "$path" ] || pip_mounts+=(-v "$path:$path:ro")
    done < <(host_pip_settings)
    storage bud --isolation chroot --format docker --build-arg "BASE_IMAGE=${BASE_IMAGE:-$STAND_IN}" \
        --secret "id=pip.conf,src=$work/pip.conf" "${pip_mounts[@]}" -t "$IMAGE" . >&2
}

# Print an entry of the image's configuration, one element a line.
config() {
    storage inspect --type image "$IMAGE" | python3 -c '
import functools, json, sys
value = functools.reduce(dict.get, sys.argv[1].split("."), json.load(sys.stdin)["Docker"]["config"])
print(*([value] if isinstance(value, str) else value), sep="\n")' "$1"
}

# Start the server like `docker run IMAGE`, with the image's entry point, command, user and
# environment. The image's volume belongs to the container and outlives a run. Mounting a folder
# over it is not reliable in this version of buildah.
start_server() {
    local command
    mapfile -t command < <(config Entrypoint && config Cmd)
    local deadline=$((SECONDS + READY_SECONDS))
    started=$(date +%s.%N)
    storage run --isolation chroot --env "ABMLL_PORT=$PORT" "${settings[@]/#/--env=}" \
        "${pip_mounts[@]}" -v "$work/pip.conf:/etc/pip.conf:ro" "$container" -- "${command[@]}" >&2 &
    runner=$!
    until curl -fsS -o /dev/null --noproxy '*' "http://127.0.0.1:$PORT/readyz" 2>/dev/null; do
        kill -0 "$runner" 2>/dev/null || { runner=; log "the server ended before it was ready"; exit 1; }
        [ "$SECONDS" -lt "$deadline" ] || { log "not ready in time"; exit 1; }
        sleep 0.5
    done
    ready_seconds=$(seconds_since "$started")
}

# Print the id of the container's first process. It is below `buildah run` and its wrappers, the
# last of which already has the user.
server_pid() {
    local pid=$runner
    while [ "$(stat -c %u "/proc/$pid")" != "$uid" ] || [[ $(readlink "/proc/$pid/exe") == *buildah-chroot* ]]; do
        pid=$(pgrep -P "$pid" | head -n 1)
        [ -n "$pid" ] || return 1
    done
    printf '%s' "$pid"
}

# Send SIGTERM, as an orchestrator does, and return the server's status.
stop_server() {
    local pid status=0
    pid=$(server_pid) || pid=$runner
    kill -TERM "$pid"
    wait "$runner" || status=$?
    runner=
    return "$status"
}

need_tools
[ -n "$BASE_IMAGE" ] || make_base

started=$(date +%s.%N)
build_image
build_seconds=$(seconds_since "$started")
size=$(storage images --format '{{.Size}}' "$IMAGE")
user=$(config User)
uid=${user%%:*}

container=$(storage from "$IMAGE")
start_server
first_ready=$ready_seconds
served_by=$(stat -c %u:%g "/proc/$(server_pid)")

mapfile -t healthcheck < <(config Healthcheck.Test | tail -n +2)
storage run --isolation chroot --env "ABMLL_PORT=$PORT" "$container" -- "${healthcheck[@]}" && health=healthy || health=unhealthy

# The request is the worked example of the server's own OpenAPI document.
api=http://127.0.0.1:$PORT
curl -fsS --noproxy '*' "$api/openapi.json" -o "$exchange/openapi.json"
python3 -c '
import json, sys
schema = json.load(open(sys.argv[1]))["components"]["schemas"]["PredictRequest"]
print(json.dumps(schema["examples"][0]))' "$exchange/openapi.json" > "$exchange/request.json"
post() { curl -sS --fail-with-body --noproxy '*' -H 'Content-Type: application/json' --data @"$exchange/request.json" "$api/v1/predict"; }
post > "$exchange/first.json"
stop_server && first_exit=0 || first_exit=$?

start_server
second_ready=$ready_seconds
post > "$exchange/second.json"
stop_server && second_exit=0 || second_exit=$?

commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- || commit="$commit with uncommitted changes"
cat <<MARKDOWN
# A prediction from inside the container

Made by \`docker/build_and_run.sh\` at commit $commit. The image is built with buildah (chroot isolation), started by
its own entry point as its own user, asked from outside over HTTP, stopped with SIGTERM, and started again on the same volume.

| what | value |
|---|---|
| base image | ${BASE_IMAGE:-Debian bookworm, minimal, with Python 3.11 (stand-in for python:3.11-slim)} |
| torch in the image | $(storage run --isolation chroot "$container" -- python3 -c 'import torch; print(torch.__version__)') |
| image size | $size |
| build, base image there | $build_seconds s |
| user and group of the server process | $served_by |
| HEALTHCHECK command | $health |
| settings besides the defaults | ${settings[*]:-none} |
| first start, ready after | $first_ready s |
| second start, ready after | $second_ready s |
| exit status after SIGTERM, first and second | $first_exit, $second_exit |

Request, to \`POST /v1/predict\` (the example of the OpenAPI document):

\`\`\`json
$(cat "$exchange/request.json")
\`\`\`

Answer of the first start:

\`\`\`json
$(python3 -m json.tool "$exchange/first.json")
\`\`\`

$(python3 - "$exchange/first.json" "$exchange/second.json" <<'PYTHON'
import json, sys

first, second = (json.load(open(path)) for path in sys.argv[1:])
same = first["predictions"] == second["predictions"]
print(
    f"After the restart the same request was answered with cache `{second['cache']}` (before: `{first['cache']}`) in "
    f"{second['timings']['total_seconds']:.2f} s (before: {first['timings']['total_seconds']:.2f} s), the predictions "
    f"{'being equal' if same else 'DIFFERING'}."
)
PYTHON
)
MARKDOWN
[ "$health" = healthy ] && [ "$served_by" = "$user" ] && [ "$first_exit" -eq 0 ] && [ "$second_exit" -eq 0 ]
