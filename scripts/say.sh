# Sourced by the other scripts: one look for what they tell, and where things are kept.
# Progress goes to standard error, so that it is seen at once and never mixed into a result.

if [[ -t 2 ]]; then
  _bold=$'\e[1m' _red=$'\e[31m' _yellow=$'\e[33m' _plain=$'\e[0m'
else
  _bold='' _red='' _yellow='' _plain=''
fi

say() { printf '%s==>%s %s\n' "$_bold" "$_plain" "$*" >&2; }
more() { printf '    %s\n' "$*" >&2; }
warn() { printf '%s==> %s%s\n' "$_yellow" "$*" "$_plain" >&2; }
fail() { printf '%s==> %s%s\n' "$_red" "$*" "$_plain" >&2; }

# The same folder that the product uses (os.UserCacheDir): what is in it survives make clean and a new checkout.
cache_dir() { printf '%s/llmm\n' "${XDG_CACHE_HOME:-$HOME/.cache}"; }

# As in the Makefile: without the compiler's word about every old call that go-nvml wraps.
export CGO_CFLAGS='-O2 -g -Wno-deprecated-declarations'
