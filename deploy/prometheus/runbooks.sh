#!/bin/sh
# Says where the readers of alerts find docs/operations.md: every runbook_url of rules.yaml,
# prometheus-rule.yaml and their tests then leads there.
#
#   sh deploy/prometheus/runbooks.sh https://wiki.example.com/countersign/operations
set -eu
case "${1-}" in
https://?* | http://?*) ;;
*)
	echo "runbooks.sh: give the page's URL, https://…, without the # that each alert adds" >&2
	exit 2
	;;
esac
case "$1" in
*[!A-Za-z0-9._~:/?\&=%@+,-]*)
	echo "runbooks.sh: $1: percent-encode what is not a letter, a digit or one of . _ ~ : / ? & = % @ + , -" >&2
	exit 2
	;;
esac
cd "$(dirname "$0")"
# In a replacement, sed takes & for what was found.
url=$(printf %s "$1" | sed 's/&/\\&/g')
for file in rules.yaml rules.test.yaml; do
	sed "s|\( runbook_url: \)[^#]*#|\1$url#|" "$file" >"$file.new"
	# Not mv: the file keeps its owner and mode.
	cat "$file.new" >"$file"
	rm "$file.new"
done
sh ./operator-rule.sh >prometheus-rule.yaml
