#!/usr/bin/env bash
# Sends the working tree (what git tracks or does not ignore) to every worker. It fails while a job runs there.
# PACK=FILE: send that archive instead (`push.sh pack FILE` writes one).
source "$(dirname "$0")/slice.sh"

pack() {
  local file=$1 folder
  git -C "$REPOSITORY" rev-parse -q --verify HEAD >/dev/null ||
    fail "$REPOSITORY is not a git repository: what is to be sent is not known"
  folder=$(mktemp -d)
  {
    git -C "$REPOSITORY" rev-parse HEAD
    [[ -z $(git -C "$REPOSITORY" status --porcelain) ]] || echo "and changes"
  } | paste -sd ' ' >"$folder/COMMIT"
  (
    cd "$REPOSITORY"
    git ls-files -z -co --exclude-standard | while IFS= read -r -d '' path; do
      [[ ! -e $path ]] || printf '%s\0' "$path"
    done
  ) >"$folder/paths"
  tar -czf "$file" -C "$REPOSITORY" --null -T "$folder/paths" -C "$folder" COMMIT
  rm -rf "$folder"
}

if [[ ${1:-} == pack ]]; then
  pack "$2"
  exit
fi
need NAME ZONE
must_be_ready
archive=${PACK:-}
if [[ -z $archive && -n ${DRY_RUN:-} ]]; then
  archive=maeclip-code.tgz
elif [[ -z $archive ]]; then
  archive=$(mktemp -d)/maeclip-code.tgz
  trap 'rm -rf "${archive%/*}"' EXIT
  pack "$archive"
fi
for node in $(nodes); do
  tpus tpu-vm scp "$archive" "$node:maeclip-code.tgz" --worker=all "${ssh_flags[@]}"
done
unpack="rm -rf maeclip/new && mkdir -p maeclip/new && tar -xzf maeclip-code.tgz -C maeclip/new"
on_workers "$unpack && bash maeclip/new/tpu/worker.sh receive"
