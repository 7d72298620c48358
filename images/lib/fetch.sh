# Fetches a kernel's source from Debian's archive through the mirrors that this
# machine's apt uses, without touching apt's own lists: sources, state and cache
# are private, and only Debian's archive key is trusted.
# Expects IMAGES, LOG, log.sh and kernels.sh.
# shellcheck shell=bash

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

# download VERSION TARGET: downloads the version's file to TARGET and verifies it against the signed index and
# kernels.toml.
download() {
    local version=$1 target=$2 dir entry uri listed
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
    if [ -n "$entry" ]; then
        read -r uri listed <<<"$entry"
        if [ "$listed" != "$sha256" ]; then
            printf '%s\n' "$file: the index of $suite disagrees with kernels.toml" \
                "kernels.toml $sha256" "index        $listed"
            return 1
        fi
    else
        # The pool keeps files longer than the suite lists them. The digest in kernels.toml still protects the
        # download.
        uri=$(cat "$dir/mirror")/pool/main/l/linux/$file
        echo "$suite no longer lists $package $package_version; trying $uri"
    fi
    mkdir -p "${target%/*}"
    rm -f "$target.part"
    /usr/lib/apt/apt-helper -c "$dir/apt.conf" download-file "$uri" "$target.part" "SHA256:$sha256"
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
