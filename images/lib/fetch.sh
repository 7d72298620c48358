# Fetches a kernel's source from Debian's archive through the mirrors that this
# machine's apt uses, without touching apt's own lists: sources, state and cache
# are private, and only Debian's archive key is trusted.
# Expects IMAGES, LOG, log.sh and kernels.sh.
# shellcheck shell=bash

APT_HELPER=${BATON_APT_HELPER:-/usr/lib/apt/apt-helper}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror_uris [ETC_APT]: archive addresses of the machine's configured Debian
# mirrors, one per line, best first.
mirror_uris() {
    local etc=${1:-/etc/apt} file format
    for file in "$etc/sources.list" "$etc"/sources.list.d/*.list "$etc"/sources.list.d/*.sources; do
        if [ ! -f "$file" ]; then continue; fi
        format=list
        if [[ $file == *.sources ]]; then format=deb822; fi
        awk -v format="$format" -f "$IMAGES/lib/mirrors.awk" "$file"
    done | awk '!seen[$0]++'
}

# apt_sources URI SUITE FORM: a private source list (deb822) with only the index of packages of that form.
apt_sources() {
    local types=deb target=Packages
    if [ "$3" = source ]; then types=deb-src target=Sources; fi
    printf '%s\n' "Types: $types" "URIs: $1" "Suites: $2" 'Components: main' \
        "Targets: $target" "Signed-By: $KEYRING"
}

# apt_config DIR: writes DIR/apt.conf. apt reads it after the machine's own configuration, which may name a proxy, and
# it takes precedence.
apt_config() {
    local dir=$1
    mkdir -p "$dir"/{sources,preferences,trusted,lists/partial,cache/archives/partial}
    : >"$dir/status"
    # The machine's hooks are meant for its own lists, so drop them. apt's sandbox user cannot access a private
    # directory, so its helpers run as the user of this script.
    cat >"$dir/apt.conf" <<EOF
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$dir/sources";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "$dir/trusted";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$dir/preferences";
Dir::State "$dir";
Dir::State::Lists "$dir/lists";
Dir::State::Status "$dir/status";
Dir::Cache "$dir/cache";
APT::Sandbox::User "$(id -un)";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::ForceHash "sha256";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF
}

# update_index DIR SUITE FORM: fetches and verifies the suite's index from the first mirror that has it. Skips mirrors
# that lack the suite or whose index Debian did not sign.
update_index() {
    local dir=$1 suite=$2 form=$3 uri
    local -a uris=()
    if [ -n "${BATON_DEBIAN_MIRROR:-}" ]; then
        uris=("$BATON_DEBIAN_MIRROR")
    else
        mapfile -t uris < <(mirror_uris)
    fi
    if [ ${#uris[@]} -eq 0 ]; then
        echo "no Debian mirror in /etc/apt/sources.list or /etc/apt/sources.list.d;" \
            "set BATON_DEBIAN_MIRROR to the address of one"
        return 1
    fi
    apt_config "$dir"
    for uri in "${uris[@]}"; do
        apt_sources "$uri" "$suite" "$form" >"$dir/sources/baton.sources"
        if apt-get -c "$dir/apt.conf" -o APT::Update::Error-Mode=any update; then
            printf '%s\n' "$uri" >"$dir/mirror"
            return 0
        fi
    done
    echo "no configured mirror has a suite $suite signed by Debian (tried: ${uris[*]})"
    return 1
}

# index_entry DIR FORM PACKAGE PACKAGE_VERSION FILE: "URI SHA256" of FILE in the signed index, or nothing if the index
# no longer lists that version.
index_entry() {
    local dir=$1 form=$2 package=$3 version=$4 file=$5
    local -a query=(download)
    if [ "$form" = source ]; then query=(source --download-only); fi
    { apt-get -c "$dir/apt.conf" "${query[@]}" --print-uris "$package=$version" || true; } |
        awk -v file="$file" -v quote="'" '
            # Each line is: quoted address, file name, size, digest.
            substr($1, 1, 1) == quote && $2 == file && sub(/^SHA256:/, "", $4) {
                print substr($1, 2, length($1) - 2), $4
                exit
            }'
}

# sha256_is FILE SHA256: fails, with both digests, unless FILE has that digest.
sha256_is() {
    local found
    found=$(sha256sum <"$1")
    found=${found%% *}
    if [ "$found" != "$2" ]; then
        printf '%s\n' "SHA-256 mismatch of $1" "expected $2" "found    $found"
        return 1
    fi
}

# file_name FORM PACKAGE PACKAGE_VERSION: the name of its file in the pool.
file_name() {
    case $1 in
    source) printf '%s_%s.orig.tar.xz\n' "$2" "${3%%-*}" ;;
    binary) printf '%s_%s_all.deb\n' "$2" "$3" ;;
    esac
}

# listed_kernels SUITE FORM: "VERSION PACKAGE PACKAGE_VERSION" of each kernel that the index lists, which has been
# fetched.
listed_kernels() {
    local dir
    local -a packages=(linux)
    dir=$(cache_root)/apt/$1-$2
    if [ "$2" = binary ]; then
        mapfile -t packages < <(apt-cache -c "$dir/apt.conf" pkgnames linux-source- | sort)
    fi
    if [ ${#packages[@]} -eq 0 ]; then return 0; fi
    # Each line is: package | version | index.
    apt-cache -c "$dir/apt.conf" madison "${packages[@]}" |
        awk -F ' *[|] *' -v kind="$([ "$2" = source ] && echo Sources || echo Packages)" '
            $3 ~ kind "$" {
                gsub(/ /, "", $1)
                version = $2
                sub(/-.*/, "", version)
                # A release candidate is 7.4~rc2, and no release.
                if (version ~ /^[0-9]+(\.[0-9]+)+$/) print version, $1, $2
            }'
}

# known_suites: the suites of kernels.toml.
known_suites() {
    sed -n 's/^suite = "\(.*\)"$/\1/p' "$IMAGES/kernels.toml" | awk '!seen[$0]++'
}

# find_kernel NAME [SUITE [FORM]]: the newest version in the indexes that is NAME or of the series NAME, as an entry of
# a list of kernels; nothing if there is none. Of a version that is there in both forms the upstream tarball is taken.
# Fails if no index can be had.
find_kernel() {
    local name=$1 suite form line had= best= best_suite= best_form=
    local version package package_version entry
    local -a suites=(${2:-$(known_suites)}) forms=(${3:-source binary})
    for suite in "${suites[@]}"; do
        for form in "${forms[@]}"; do
            if ! update_index "$(cache_root)/apt/$suite-$form" "$suite" "$form" >&2; then continue; fi
            had=yes
            line=$(listed_kernels "$suite" "$form" | sort -V | awk -v name="$name" '
                $1 == name || index($1, name ".") == 1 { newest = $0 } END { print newest }')
            if [ -z "$line" ]; then continue; fi
            if [ -n "$best" ] && [ "$(printf '%s\n' "${line%% *}" "${best%% *}" | sort -V | tail -n 1)" = "${best%% *}" ]; then
                continue
            fi
            best=$line best_suite=$suite best_form=$form
        done
    done
    if [ -z "$had" ]; then return 1; fi
    if [ -z "$best" ]; then return 0; fi
    read -r version package package_version <<<"$best"
    local file
    file=$(file_name "$best_form" "$package" "$package_version")
    entry=$(index_entry "$(cache_root)/apt/$best_suite-$best_form" "$best_form" "$package" "$package_version" "$file")
    if [ -z "$entry" ]; then
        echo "the index of $best_suite lists $package $package_version without a SHA-256 of $file" >&2
        return 1
    fi
    printf '%s = "%s"\n' version "$version" suite "$best_suite" form "$best_form" package "$package" \
        package_version "$package_version" file "$file" sha256 "${entry##* }"
}

# remember ENTRY [INSTEAD_OF]: adds an entry that find_kernel printed to the kernels that were found, unless its version
# is known, and prints its version. INSTEAD_OF is the version of kernels.toml whose file the archive no longer has.
remember() {
    local version list
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' <<<"$1")
    list=$(found_list)
    if [ -n "${2:-}" ] || ! kernel_field "$version" sha256 >/dev/null; then
        mkdir -p "${list%/*}"
        {
            printf '[[kernel]]\n'
            if [ -n "${2:-}" ]; then
                printf 'instead_of = "%s"\ninstead_of_sha256 = "%s"\n' "$2" "$(kernel_field "$2" sha256 pinned || kernel_field "$2" sha256)"
            fi
            printf '%s\n' "$1"
        } >>"$list"
    fi
    printf '%s\n' "$version"
}

# download VERSION TARGET: downloads the version's file to TARGET and verifies it against the signed index and the list
# of kernels. If neither the index nor the pool has it any more, takes the series' current version of the signed index
# instead: remembers that, and leaves TARGET alone.
download() {
    local version=$1 target=$2 dir entry uri listed current
    local suite form package package_version file sha256
    suite=$(kernel_field "$version" suite)
    form=$(kernel_field "$version" form)
    package=$(kernel_field "$version" package)
    package_version=$(kernel_field "$version" package_version)
    file=$(kernel_field "$version" file)
    sha256=$(kernel_field "$version" sha256)

    dir=$(cache_root)/apt/$suite-$form
    update_index "$dir" "$suite" "$form"
    entry=$(index_entry "$dir" "$form" "$package" "$package_version" "$file")
    mkdir -p "${target%/*}"
    rm -f "$target.part"
    if [ -n "$entry" ]; then
        read -r uri listed <<<"$entry"
        if [ "$listed" != "$sha256" ]; then
            printf '%s\n' "$file: the index of $suite disagrees with the list of kernels" \
                "list  $sha256" "index $listed"
            return 1
        fi
        "$APT_HELPER" -c "$dir/apt.conf" download-file "$uri" "$target.part" "SHA256:$sha256"
    else
        # The pool keeps files longer than the suite lists them. The digest still protects the download.
        uri=$(cat "$dir/mirror")/pool/main/l/linux/$file
        echo "$suite no longer lists $package $package_version; trying $uri"
        if ! "$APT_HELPER" -c "$dir/apt.conf" download-file "$uri" "$target.part" "SHA256:$sha256"; then
            rm -f "$target.part"
            current=$(find_kernel "$(series_of "$version")" "$suite" "$form")
            : "${current:=$(find_kernel "$(series_of "$version")")}"
            if [ -z "$current" ]; then
                echo "the archive has neither $package $package_version nor another version of Linux $(series_of "$version")"
                return 1
            fi
            remember "$current" "$(kernel_field "$version" instead_of || printf '%s' "$version")"
            return 0
        fi
    fi
    sha256_is "$target.part" "$sha256"
    mv "$target.part" "$target"
}

# Patterns of sources that the fragment never enables, which are most of the tree's hundred thousand files. Kconfig
# and Makefile files stay, because kbuild reads them.
unused_sources() {
    local arch part
    for arch in alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc \
        powerpc riscv s390 sh sparc um xtensa; do
        printf '%s\n' "--exclude=*/arch/$arch/*."{c,h,S,dts,dtsi,dtso,xml,tbl} "--exclude=*/arch/$arch/configs/*"
    done
    for part in accel clk crypto gpu hid hwmon iio infiniband input media mfd mtd net phy pinctrl platform \
        scsi soc staging usb video; do
        printf '%s\n' "--exclude=*/drivers/$part/*.[ch]"
    done
    printf '%s\n' '--exclude=*/sound/*.[ch]' '--exclude=*/samples/*.[ch]' \
        '--exclude=*/Documentation/*.'{rst,yaml,txt,svg,json} \
        '--exclude=*/tools/testing/*' '--exclude=*/tools/perf/*'
}

# unpack FORM ARCHIVE DIR: unpacks the used parts of the kernel tree, without its top directory.
unpack() {
    local -a untar=(tar -x --strip-components=1 -C "$3" --anchored)
    mapfile -t -O ${#untar[@]} untar < <(unused_sources)
    mkdir -p "$3"
    if [ "$1" = source ]; then
        "${untar[@]}" -Jf "$2"
    else
        dpkg-deb --fsys-tarfile "$2" |
            tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
            "${untar[@]}" -J
    fi
}
