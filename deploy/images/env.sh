#!/bin/sh
# env.sh FILE < LINES renews lines like NAME=value in a file, and keeps all that somebody else has put there or changed.
#
# FILE.made has the lines as they were written last: what differs from it is somebody else's, and goes before LINES.
set -eu
file=$1
made=$file.made

cat >"$file.lines"
[ -f "$file" ] || : >"$file"
if [ ! -f "$made" ]; then # the file is older than this script: all but a project name of one's own was written by build.sh
	names=$(sed 's/=.*//' "$file.lines" | tr '\n' '|')
	grep -E "^(${names%|})=" "$file" | grep -Ev '^COMPOSE_PROJECT_NAME=' >"$made" || true
	echo COMPOSE_PROJECT_NAME=berth >>"$made"
fi
grep -vxFf "$made" "$file" | grep -v -e '^# From deploy/images/build.sh' -e '^$' >"$file.yours" || true
{
	echo "# From deploy/images/build.sh, which renews its own lines and keeps yours: those that you add or change."
	awk -F= 'FILENAME == ARGV[1] { yours[$1] = 1; next } !($1 in yours)' "$file.yours" "$file.lines"
	cat "$file.yours"
} >"$file.new"
mv "$file.lines" "$made"
mv "$file.new" "$file"
rm -f "$file.yours"
