#!/usr/bin/env bash
# Kills one run with SIGKILL so many times (200), resumes it each time, and looks at what is left: see the head of
# crates/cli/tests/cli/kills.rs. One line at the end; exit code 1 and what was wrong where something was. Linux.
# Usage: benches/kill.sh [KILLS]
set -euo pipefail
cd "$(dirname "$0")/.."
RUST_BACKTRACE=0 FLASHLM_KILLS=${1:-200} cargo test --quiet --release -p flashlm --test cli -- \
  --exact kills::a_run_killed_many_times_goes_on_as_if_it_had_not_been --ignored --nocapture |
  { grep -Ev '^(running|test |\.?$)' || true; }
