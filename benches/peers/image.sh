#!/bin/sh
# Makes an OCI layout with one image of eight layers, each the content of one Debian package, tagged "latest":
#   image.sh FOLDER
# About 220 MB in more than 5,000 files, no layer above a quarter of it. Needs apt-get, dpkg-deb, gzip and sha256sum, and
# a network or a filled apt cache. A folder that is complete already is left as it is.
set -eu

packages='vim-runtime git python3-numpy python3-django python3-sympy libgtk-3-doc libglib2.0-doc perl-modules-5.36'

folder=$1
if [ -f "$folder/complete" ]; then
    exit 0
fi
rm -rf "$folder"
mkdir -p "$folder/debs" "$folder/layout/blobs/sha256"
cd "$folder"

(cd debs && apt-get download -q $packages >/dev/null)

blob() { # moves a file to its place; prints its digest's hex and its size
    set -- "$1" "$(sha256sum <"$1" | cut -d' ' -f1)" "$(wc -c <"$1")"
    mv "$1" "layout/blobs/sha256/$2"
    echo "$2 $3"
}

layers=
diff_ids=
total=0
largest=0
files=0
for package in $packages; do
    dpkg-deb --fsys-tarfile debs/"$package"_*.deb >layer.tar
    size=$(wc -c <layer.tar)
    total=$((total + size))
    if [ "$size" -gt "$largest" ]; then largest=$size; fi
    files=$((files + $(tar -tvf layer.tar | grep -c '^-')))
    diff_ids="$diff_ids${diff_ids:+,}\"sha256:$(sha256sum <layer.tar | cut -d' ' -f1)\""
    gzip -6 -n <layer.tar >layer.tar.gz
    rm layer.tar
    set -- $(blob layer.tar.gz)
    layers="$layers${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$1\",\"size\":$2}"
done
rm -r debs

if [ "$total" -lt 200000000 ] || [ "$files" -lt 5000 ] || [ $((largest * 4)) -gt "$total" ]; then
    echo "the packages have changed: $total bytes, $files files, the largest layer has $largest" >&2
    exit 1
fi

printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' "$diff_ids" >config
set -- $(blob config)
config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$1\",\"size\":$2}"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layers" >manifest
set -- $(blob manifest)
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
    "$1" "$2" >layout/index.json
printf '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
echo "$total $files" >complete
