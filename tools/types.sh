#!/usr/bin/env bash
# Check the types of this working tree, whatever its folder is called: the package must be found as clipspm.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/.mypy_cache"
ln -sfn "$root" "$root/.mypy_cache/clipspm"
cd "$root/.mypy_cache"
exec mypy --config-file "$root/pyproject.toml" -p clipspm
