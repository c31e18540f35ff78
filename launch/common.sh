# shellcheck shell=bash
# What the launch scripts share; sourced by them, not run. Works with the bash 3.2 of macOS.

say() { printf 'launch: %s\n' "$*" >&2; }

# die TEXT: a mistake of the user's, in one line.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# value_of OPTION [VALUE]: prints VALUE, or complains that OPTION has none.
value_of() {
  [ $# -ge 2 ] || die "$1 needs a value"
  printf '%s' "$2"
}

# number_of OPTION VALUE: prints VALUE if it is a whole number.
number_of() {
  case "${2-}" in
    '' | *[!0-9]*) die "$1 needs a whole number, not '${2-}'" ;;
    *) printf '%s' "$2" ;;
  esac
}

# quoted WORD...: the words as a shell would have to read them.
quoted() {
  local word separator='' out='' quote=\' inside="'\\''"
  for word in "$@"; do
    case "$word" in
      '' | *[!a-zA-Z0-9_./:=@%+,-]*)
        word=${word//$quote/$inside}
        word="'$word'"
        ;;
    esac
    out=$out$separator$word
    separator=' '
  done
  printf '%s' "$out"
}

# run WORD...: a command, or, in a dry run, its text.
run() {
  if [ -n "${dry:-}" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# usage FILE: the comment at the top of a script.
usage() { sed -e '1d' -e '/^[^#]/,$d' -e '/^$/,$d' -e 's/^# \{0,1\}//' "$1"; }
