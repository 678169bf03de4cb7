#!/bin/sh
# Installs the system packages that tests need, where it may (root on Debian or Ubuntu). Elsewhere it names what is
# missing; the tests that need it are then skipped with the reason.
set -u
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
missing=""
for pair in git:git mount:mount tmux:tmux ssh:openssh-client sshd:openssh-server ip:iproute2 nft:nftables \
    nsenter:util-linux faketime:faketime fish:fish tcsh:tcsh zsh:zsh; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing && exit 0
fi
echo "tests that need these packages will be skipped:$missing" >&2
exit 0
