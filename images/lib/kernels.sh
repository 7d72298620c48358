# Reads the lists of kernels and the kernel option fragment, and names cache directories.
# Expects IMAGES (the folder of the image scripts), LOG (a file) and log.sh.
# shellcheck shell=bash

# Raise this number when a change of the build changes its output. New options need no change, because the fragment is
# part of the key.
BUILD_RECIPE=1

# The directory of everything that is kept between runs.
cache_root() {
    printf '%s\n' "${BATON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/baton}"
}

# What "images/build" has found in the archive beside the list, in the same form.
found_list() {
    printf '%s/found.toml\n' "$(cache_root)"
}

# kernel_entries [pinned]: "VERSION KEY VALUE" of every known kernel, or of those of kernels.toml, in file order. Kernels that were found in the archive stand
# behind those of kernels.toml. One that was taken instead of a pinned file counts only while that file is still pinned;
# if it has the same version it replaces the pinned one.
kernel_entries() {
    local found
    found=$(found_list)
    if [ ! -f "$found" ] || [ "${1:-}" = pinned ]; then found=/dev/null; fi
    awk '
        function take(    version, instead, key) {
            if (!count) return
            version = entry["version"]
            # A mention alone would make the key.
            instead = "instead_of" in entry ? entry["instead_of"] : ""
            count = 0
            if (pinned) {
                pin[version] = entry["sha256"]
            } else {
                if (instead in pin && pin[instead] != entry["instead_of_sha256"]) return
                if (version in pin && instead != version) return
            }
            if (!(version in text)) order[++versions] = version
            text[version] = ""
            for (key in entry) text[version] = text[version] version " " key " " entry[key] "\n"
        }
        /^\[\[kernel\]\]$/ { take(); split("", entry); pinned = FILENAME ~ /kernels.toml$/; next }
        match($0, /^[a-z0-9_]+ = ".*"$/) {
            text_of = substr($0, length($1) + 5)
            entry[$1] = substr(text_of, 1, length(text_of) - 1)
            count++
        }
        END { take(); for (i = 1; i <= versions; i++) printf "%s", text[order[i]] }
    ' "$IMAGES/kernels.toml" "$found"
}

# Every known version, one per line, in file order.
kernel_versions() {
    kernel_entries | awk '!seen[$1]++ { print $1 }'
}

# series_of VERSION: its first two numbers.
series_of() {
    local IFS=.
    local -a numbers
    read -ra numbers <<<"$1"
    printf '%s.%s\n' "${numbers[0]}" "${numbers[1]-}"
}

# is_version TEXT: whether it has the form of a version or a series.
is_version() {
    [[ $1 =~ ^[0-9]+(\.[0-9]+)+$ ]]
}

# newest_of SERIES: the newest of the versions on standard input that belong to the series; nothing if there is none.
newest_of() {
    awk -v series="$1" '$0 == series || index($0, series ".") == 1' | sort -V | tail -n 1
}

# stand_in VERSION: the version that was taken because the archive no longer had this one; nothing if it was not.
stand_in() {
    local version
    for version in $(kernel_versions); do
        if [ "$(kernel_field "$version" instead_of || true)" = "$1" ]; then printf '%s\n' "$version"; fi
    done | sort -V | tail -n 1
}

# known_name NAME: the name of the kernel that NAME means, as far as that is known without the archive: of a series the
# newest known version, and before that the newest that is built; of a version that the archive no longer had, unless
# it is built, what was taken instead.
known_name() {
    local version variant version_of
    version=$(name_version "$1")
    variant=$(name_variant "$1")
    if ! kernel_field "$version" sha256 >/dev/null; then
        version_of=$(built_versions "$variant" | newest_of "$version")
        : "${version_of:=$(kernel_versions | newest_of "$version")}"
        version=${version_of:-$version}
    elif [ ! -d "$(kernel_dir "$1")" ]; then
        version_of=$(stand_in "$version")
        version=${version_of:-$version}
    fi
    printf '%s\n' "$version${variant:++$variant}"
}

# built_versions VARIANT: known versions that are built with this variant, one per line.
built_versions() {
    local version
    for version in $(kernel_versions); do
        if [ -d "$(kernel_dir "$version${1:++$1}")" ]; then printf '%s\n' "$version"; fi
    done
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

# kernel_field VERSION KEY [pinned]: the key's value, or failure if there is none.
kernel_field() {
    kernel_entries "${3:-}" | awk -v version="$1" -v key="$2" '
        $1 == version && $2 == key { print substr($0, length($1) + length($2) + 3); found = 1 }
        END { exit !found }'
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
