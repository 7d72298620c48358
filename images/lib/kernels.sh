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

# Every known variant, one per line.
kernel_variants() {
    local file
    for file in "$IMAGES"/variants/*.config; do
        file=${file##*/}
        printf '%s\n' "${file%.config}"
    done
}

# name_version NAME and name_variant NAME: the parts of VERSION or VERSION+VARIANT; no variant is empty.
name_version() {
    printf '%s\n' "${1%%+*}"
}
name_variant() {
    case $1 in
    *+*) printf '%s\n' "${1#*+}" ;;
    esac
}

# fragment_files NAME: the option fragments of a kernel, in the order in which they apply.
fragment_files() {
    local variant
    variant=$(name_variant "$1")
    printf '%s\n' "$IMAGES/kernel.config" ${variant:+"$IMAGES/variants/$variant.config"}
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

# fragment_options NAME: the options of a kernel's fragments without comments and marks, the input of the kernel's
# configuration tools and of the cache key. Of an option that is named twice the last counts.
fragment_options() {
    local -a files
    mapfile -t files < <(fragment_files "$1")
    sed -E -e 's/[[:space:]]*# optional$//' "${files[@]}" |
        grep -E '^(CONFIG_[A-Za-z0-9_]+=.*|# CONFIG_[A-Za-z0-9_]+ is not set)$' |
        awk '
            { match($0, /CONFIG_[A-Za-z0-9_]+/); name = substr($0, RSTART, RLENGTH) }
            !(name in last) { order[++count] = name }
            { last[name] = $0 }
            END { for (i = 1; i <= count; i++) print last[order[i]] }'
}

# fragment_optional NAME: options that a kernel may lack.
fragment_optional() {
    local -a files
    mapfile -t files < <(fragment_files "$1")
    sed -n -E 's/^(CONFIG_[A-Za-z0-9_]+=[^ ]*)[[:space:]]*# optional$/\1/p' "${files[@]}"
}

# kernel_dir NAME: the directory of this kernel's build, which may not exist yet.
kernel_dir() {
    local sha256 key
    sha256=$(kernel_field "$(name_version "$1")" sha256)
    key=$({
        printf '%s\n' "recipe $BUILD_RECIPE" "source $sha256"
        fragment_options "$1"
    } | sha256sum)
    printf '%s/kernels/%s-%s\n' "$(cache_root)" "$1" "${key:0:12}"
}

# check_config NAME CONFIG: fails if an option of the fragments did not take effect, unless it is marked optional;
# prints the missing options. Options that stay on although the fragment switches them off only cost time, so they are
# printed and accepted.
check_config() {
    local version=$1 config=$2 verdict
    local -a missing
    verdict=$(awk -v optional="$(fragment_optional "$version" | paste -sd ' ')" '
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
        }' <(grep -E '^(CONFIG_|# CONFIG_)' "$config") <(fragment_options "$version"))
    if grep -q '^missing ' <<<"$verdict"; then
        mapfile -t missing < <(sed -n 's/^missing //p' <<<"$verdict")
        die "Linux $version did not take these options of $(fragment_files "$version" | paste -sd ' ')" "${missing[@]}" \
            "the configuration that came out is in $LOG"
    fi
    if [ -n "$verdict" ]; then sed "s/^/  Linux $version /" <<<"$verdict" >&2; fi
}
