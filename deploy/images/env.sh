#!/bin/sh
# env.sh FILE < LINES updates lines like NAME=value in a file, and keeps lines that you have added or changed.
#
# FILE.made has the lines as last written: any line that differs is yours, and overrides LINES.
set -eu
file=$1
made=$file.made

cat >"$file.lines"
[ -f "$file" ] || : >"$file"
if [ ! -f "$made" ]; then # the file is older than this script: build.sh wrote all of it except a custom project name
	names=$(sed 's/=.*//' "$file.lines" | tr '\n' '|')
	grep -E "^(${names%|})=" "$file" | grep -Ev '^COMPOSE_PROJECT_NAME=' >"$made" || true
	echo COMPOSE_PROJECT_NAME=berth >>"$made"
fi
grep -vxFf "$made" "$file" | grep -v -e '^# From deploy/images/build.sh' -e '^$' >"$file.yours" || true
{
	echo "# From deploy/images/build.sh, which updates its own lines and keeps lines that you add or change."
	awk -F= 'FILENAME == ARGV[1] { yours[$1] = 1; next } !($1 in yours)' "$file.yours" "$file.lines"
	cat "$file.yours"
} >"$file.new"
mv "$file.lines" "$made"
mv "$file.new" "$file"
rm -f "$file.yours"
