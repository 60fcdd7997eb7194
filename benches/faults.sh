#!/usr/bin/env bash
# Lets every call that changes something in a run's folder fail in turn, in four ways: see the head of
# crates/cli/tests/cli/disk.rs. One line at the end; exit code 1 and what was wrong where something was. Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
RUST_BACKTRACE=0 cargo test --quiet --release -p flashlm --test cli -- \
  --exact disk::a_disk_that_fails_at_any_call_loses_nothing_that_was_saved --ignored --nocapture |
  { grep -Ev '^(running|test |\.?$)' || true; }
