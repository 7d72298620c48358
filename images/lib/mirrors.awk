# Prints the archive addresses that an apt source list uses for Debian's own
# suites, one per line. Reads one-line files (sources.list, *.list) and deb822
# files (*.sources); give each file with -v format=list or -v format=deb822.
#
# Third-party repositories use other suite names; one that does not is found out
# later, because only indexes signed by Debian's archive key are accepted.

function debian_suite(suite) {
    return suite ~ /^(oldoldstable|oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)(-(updates|backports|proposed-updates))?$/
}

# uris, suites, components: space-separated lists. Security archives hold no kernels
# of backports suites, so their suites are not Debian suites here.
function emit(types, uris, suites, components,    n, i, list, ours) {
    if ((" " types " ") !~ / deb / || (" " components " ") !~ / main /)
        return
    n = split(suites, list, " ")
    for (i = 1; i <= n; i++)
        if (debian_suite(list[i]))
            ours = 1
    if (!ours)
        return
    n = split(uris, list, " ")
    for (i = 1; i <= n; i++) {
        sub(/\/+$/, "", list[i])
        if (!(list[i] in seen))
            print list[i]
        seen[list[i]] = 1
    }
}

function end_stanza() {
    if (tolower(value["enabled"]) !~ /^ *(no|false|off|0) *$/)
        emit(value["types"], value["uris"], value["suites"], value["components"])
    split("", value)
    field = ""
}

format == "list" {
    sub(/#.*/, "")
    gsub(/\[[^]]*\]/, " ")
    if ($1 != "deb")
        next
    components = ""
    for (i = 4; i <= NF; i++)
        components = components " " $i
    emit($1, $2, $3, components)
    next
}

/^#/ { next }
/^[ \t]*$/ { end_stanza(); next }
/^[ \t]/ { value[field] = value[field] " " $0; next }
{
    colon = index($0, ":")
    field = tolower(substr($0, 1, colon - 1))
    value[field] = substr($0, colon + 1)
}
END { if (format != "list") end_stanza() }
