#!/usr/bin/env bash
# The image of deploy/Dockerfile around a program that is built already, as a docker archive. No daemon, no registry, no base image.
#
#   scripts/image.sh OUT.tar NAME:TAG PROGRAM
#
# Needs buildah; as root on Debian it is installed when it is missing. Exit code 3: it is missing and cannot be installed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath "${1:?which archive?}") name=${2:?which name?} program=$(realpath "${3:?which program?}")

have_buildah() {
    command -v buildah >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/coproc
    mkdir -p "$cache"
    # One at a time: apt lets only one in.
    (
        flock 9
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah
    ) 9>"$cache/.packages.lock" >&2
}
have_buildah || { echo "image: buildah is missing, and cannot be installed without root and apt-get" >&2; exit 3; }

work=$(mktemp -d "${TMPDIR:-/tmp}/coproc-image.XXXXXXXX")
clean_up() {
    case $work in
        */coproc-image.????????) rm -rf -- "$work" ;;
    esac
}
trap clean_up EXIT
mkdir "$work/context"
"$here/deploy/rootfs" "$program" "$work/context/root"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
# A store of its own, on plain directories: no overlay, nothing left behind.
build() { buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"; }
# No base image is wanted: no registry is to be asked.
build build-using-dockerfile --quiet --isolation chroot --pull-never --signature-policy "$work/policy.json" \
    --target prebuilt --file "$here/deploy/Dockerfile" --tag "$name" "$work/context" >/dev/null
rm -f -- "$out"
build push --quiet --signature-policy "$work/policy.json" "$name" "docker-archive:$out:$name"
