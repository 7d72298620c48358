# Reads kernels.toml and the kernel option fragment, and names cache directories.
# Expects IMAGES (the folder of the image scripts), LOG (a file) and log.sh.
# shellcheck shell=bash

# Raise this number when a change of the build changes its output. New options need no change, because the fragment is
# part of the key.
BUILD_RECIPE=1

# The directory of everything that is kept between runs.
cache_root() {
    printf '%s\n' "${BATON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baton}"
}

# Every known version, one per line, in file order.
kernel_versions() {
    sed -n 's/^version = "\(.*\)"$/\1/p' "$IMAGES/kernels.toml"
}

# kernel_field VERSION KEY: the key's value, or failure if there is none.
kernel_field() {
    awk -v version="$1" -v key="$2" '
        /^\[\[kernel\]\]$/ { current = ""; next }
        match($0, /^[a-z0-9_]+ = ".*"$/) {
            name = $1
            text = substr($0, length(name) + 5)
            text = substr(text, 1, length(text) - 1)
            if (name == "version") current = text
            if (current == version && name == key) { print text; found = 1; exit }
        }
        END { exit !found }
    ' "$IMAGES/kernels.toml"
}

# The fragment without comments and marks: the input of the kernel's configuration tools and of the cache key.
fragment_options() {
    sed -E -e 's/[[:space:]]*# optional$//' "$IMAGES/kernel.config" |
        grep -E '^(CONFIG_[A-Za-z0-9_]+=.*|# CONFIG_[A-Za-z0-9_]+ is not set)$'
}

# Options that a version may lack.
fragment_optional() {
    sed -n -E 's/^(CONFIG_[A-Za-z0-9_]+=[^ ]*)[[:space:]]*# optional$/\1/p' "$IMAGES/kernel.config"
}

# kernel_dir VERSION: the directory of this version's build, which may not exist yet.
kernel_dir() {
    local sha256 key
    sha256=$(kernel_field "$1" sha256)
    key=$({
        printf '%s\n' "recipe $BUILD_RECIPE" "source $sha256"
        fragment_options
    } | sha256sum)
    printf '%s/kernels/%s-%s\n' "$(cache_root)" "$1" "${key:0:12}"
}

# check_config VERSION CONFIG: fails if an option of the fragment did not take effect, unless it is marked optional;
# prints the missing options. Options that stay on although the fragment switches them off only cost time, so they are
# printed and accepted.
check_config() {
    local version=$1 config=$2 verdict
    local -a missing
    verdict=$(awk -v optional="$(fragment_optional | paste -sd ' ')" '
        function symbol(line) { match(line, /CONFIG_[A-Za-z0-9_]+/); return substr(line, RSTART, RLENGTH) }
        NR == FNR { result[symbol($0)] = $0; next }
        {
            name = symbol($0)
            short = substr(name, 8)
            found = name in result ? result[name] : "no such option"
            if ($0 == found) next
            if ($0 ~ /^#/) { if (found ~ /^CONFIG_/) kept = kept " " short }
            else if (index(" " optional " ", " " $0 " ")) lacking = lacking " " short
            else print "missing " $0 " (found: " found ")"
        }
        END {
            if (lacking) print "lacks" lacking
            if (kept) print "keeps on" kept
        }' <(grep -E '^(CONFIG_|# CONFIG_)' "$config") <(fragment_options))
    if grep -q '^missing ' <<<"$verdict"; then
        mapfile -t missing < <(sed -n 's/^missing //p' <<<"$verdict")
        die "Linux $version did not take these options of $IMAGES/kernel.config" "${missing[@]}" \
            "the configuration that came out is in $LOG"
    fi
    if [ -n "$verdict" ]; then sed "s/^/  Linux $version /" <<<"$verdict" >&2; fi
}
