# Sourced by setup_env.sh: which pinned set of requirements/ for which Python.
# A set names its Pythons in a line "# Python 3.10 3.9", the preferred first.

PYENV_VERSIONS=${PYENV_ROOT:-$HOME/.pyenv}/versions

pythons_of() { sed -n 's/^# Python //p' "tools/requirements/$1.txt"; }
either() { local words=$*; echo "${words// / or }"; }
# Fails where NAME cannot be run, such as pyenv's stand-in for a version that is not chosen.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
# runnable NAME: NAME if it runs, or what pyenv has under that name.
runnable() {
  local candidate
  for candidate in "$1" "$PYENV_VERSIONS/${1#python}".*/bin/python; do
    if version_of "$candidate" >/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# choose_stack NAME: sets stack and interpreter. Without a name the interpreter
# decides: PYTHON, or else python3. With a name and no PYTHON one is looked for.
choose_stack() {
  local name version found names
  stack=$1
  if [ -n "${PYTHON-}" ] || [ -z "$stack" ]; then
    name=${PYTHON:-python3}
    if ! interpreter=$(runnable "$name"); then
      command -v "$name" >/dev/null && stop "'$name' does not run: $("$name" --version 2>&1)"
      stop "no '$name' on PATH or in $PYENV_VERSIONS. Name an interpreter: PYTHON=/path/to/python3.11 bash tools/setup_env.sh"
    fi
    version=$(version_of "$interpreter")
    for found in ${stack:-openmmlab classic oldest}; do
      if [[ " $(pythons_of "$found") " = *" $version "* ]]; then
        stack=$found
        return
      fi
    done
    names=
    for found in openmmlab classic oldest onedl; do
      names="$names, $found $(either $(pythons_of "$found"))"
    done
    stop "'$name' is Python $version, which is not one for ${stack:-any set}. The sets are for Python: ${names#, }. Name an interpreter: PYTHON=/path/to/python3.11 bash tools/setup_env.sh"
  fi
  for version in $(pythons_of "$stack"); do
    for name in python3 "python$version"; do
      if interpreter=$(runnable "$name") && [ "$(version_of "$interpreter")" = "$version" ]; then
        return
      fi
    done
  done
  names=$(pythons_of "$stack")
  stop "--stack $stack needs Python $(either $names). Looked on PATH for python3 (it is $(version_of python3 || echo missing)) and python${names// / and python}, and in $PYENV_VERSIONS for ${names// /.* and }.*. Install one, or name it: PYTHON=/path/to/python${names%% *} bash tools/setup_env.sh --stack $stack"
}
