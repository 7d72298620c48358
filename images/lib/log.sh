# Messages of the image scripts. Everything here goes to standard error, so that a
# script's result (a directory) is all that it prints on standard output.
# shellcheck shell=bash

# die MESSAGE...: says what is wrong and ends the script.
die() {
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    shift
    if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
    exit 1
}

note() {
    printf '  %s\n' "$*" >&2
}

# step NAME COMMAND...: runs the command with its output in $LOG, and prints one
# line with the time it took. On failure the log's tail is shown.
# Returns the command's status.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    printf '  %-58s' "$name" >&2
    printf '\n== %s\n' "$name" >>"$LOG"
    # In a subshell of its own, because "set -e" is off inside a condition.
    set +e
    (
        set -e
        "$@"
    ) >>"$LOG" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        printf '%4d s\n' $((SECONDS - start)) >&2
        return 0
    fi
    printf 'failed after %d s (status %d)\n' $((SECONDS - start)) "$status" >&2
    tail -n 25 "$LOG" | sed 's/^/    | /' >&2
    die "\"$name\" failed" "full log: $LOG"
}
