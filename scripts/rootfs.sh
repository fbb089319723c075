#!/bin/sh
# Assembles the root file system of an image: scripts/rootfs.sh BINARY FOLDER [NAME]
#
# NAME is the name of the binary in the image: `sidestream` (the default) or `sidestream-injector`.
#
# The binary, the libraries that it is linked with, the certificates of public authorities, and three small files. No
# shell, no package manager, nothing that writes. Debian 12 (glibc 2.36): the C library resolves names without plug-ins.
set -eu
binary=$1
root=$2
name=${3:-sidestream}

mkdir -p "$root/etc/ssl/certs" "$root/etc/sidestream" "$root/run/sidestream" "$root/tmp"
chmod 1777 "$root/tmp"
install -m 0755 "$binary" "$root/$name"

# `libc.so.6 => /lib/.../libc.so.6 (0x...)`, and the loader without an arrow.
ldd "$binary" | sed -nE 's|^[^/]*(/[^ ]+) \(0x.*|\1|p' | while read -r library; do
    install -D -m 0755 "$library" "$root$library"
done

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# Kubernetes needs only the numeric ids; tools that display users need the names.
printf 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'nonroot:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
