#!/usr/bin/env bash
# Makes a virtual environment with a pinned set of tools/requirements/ and this package.
# Usage: bash tools/setup_env.sh [--stack openmmlab|classic|oldest|onedl] [--cpu]
#   --stack openmmlab  .venv: today's packages, Python 3.11 to 3.13
#   --stack classic    .venv-classic: torch 2.1, numpy 1, Python 3.10 or 3.9
#   --stack oldest     .venv-oldest: the oldest that are supported, torch 2.0, Python 3.8
#   --stack onedl      .venv-onedl: the maintained fork of the OpenMMLab packages
#   --cpu              compile mmcv's CPU operators even where a GPU is in sight
# Without --stack the interpreter decides, which is python3 or
#   PYTHON=python3.10 bash tools/setup_env.sh
# Running it again reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { echo "setup_env: $*" >&2; exit 1; }
source tools/choose_stack.sh

device=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --cpu) device=cpu ;;
    --stack) chosen=${2-}; shift ;;
    *) echo "setup_env: expected --stack NAME or --cpu, got '$1'" >&2; exit 2 ;;
  esac
  shift || break
done

if [ -n "${chosen+x}" ] && [[ ! "$chosen" =~ ^[a-z]+$ || -z "$(pythons_of "$chosen" 2>/dev/null)" ]]; then
  echo "setup_env: expected --stack openmmlab, classic, oldest or onedl, got '$chosen'" >&2
  exit 2
fi
started=$SECONDS
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$requirements"; }
# has NAME VERSION: is that version installed (any local label such as +cpu)?
has() {
  "$python" - "$1" "$2" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    installed = version(sys.argv[1])
except PackageNotFoundError:
    sys.exit(1)
sys.exit(installed.split('+')[0] != sys.argv[2])
PY
}
# step TITLE COMMAND...: runs the command and says how long it took.
step() {
  local title=$1 begin=$SECONDS
  shift
  echo "setup_env: $title"
  "$@" || stop "'$title' failed; the lines above are its output."
  echo "setup_env:   done in $((SECONDS - begin)) s"
}
# nproc would print OpenMP's number of threads where it is set.
cores() { (unset OMP_NUM_THREADS; nproc); }
# Compiled to bytecode is what gets imported, when it is: all of it would take half a minute.
pip_install() { "$python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }

command -v g++ >/dev/null || stop "no C++ compiler. mmcv has to be compiled: install g++ (Debian, Ubuntu: apt-get install g++) and run this again."
choose_stack "${chosen-}"
requirements=tools/requirements/$stack.txt
venv=$PWD/.venv
[ "$stack" = openmmlab ] || venv=$venv-$stack
python=$venv/bin/python
echo "setup_env: stack $stack in ${venv##*/}, with $("$interpreter" --version) ($interpreter)"
"$interpreter" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
  || stop "Python.h of '$interpreter' is missing; install its development package (Debian, Ubuntu: apt-get install python3-dev) and run this again."
if [ -x "$python" ]; then
  [ -z "${PYTHON-}" ] || [ "$(version_of "$python")" = "$(version_of "$interpreter")" ] \
    || stop "${venv##*/} was made with $("$python" --version), and PYTHON is '$PYTHON'. Remove it to make it again: rm -r $venv"
else
  free_mib=$(df -Pm . | awk 'NR==2 {print $4}')
  [ "$free_mib" -ge 8000 ] || stop "about 8 GB of disk are needed below $PWD, $free_mib MB are free."
  step "making the virtual environment ${venv##*/}" "$interpreter" -m venv "$venv"
fi

# torch first and alone: packages installed later then find their torch satisfied,
# and mmcv's build needs it. setuptools < 82 still has the pkg_resources that mmcv's setup.py imports.
torch_version=$(pinned torch)
if has torch "$torch_version"; then
  echo "setup_env: torch $torch_version is there"
else
  # Not cached by pip: a CUDA build is 2.6 GB.
  step "installing torch $torch_version" pip_install --no-cache-dir "torch==$torch_version" "numpy==$(pinned numpy)"
fi
step "installing the pinned packages" pip_install -r "$requirements"

# A CUDA build of torchvision beside a CPU build of torch fails on import, because torchvision's
# Python code registers kernels for operators that its C++ library failed to define.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
if "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' \
    && "$python" -c 'import importlib.metadata as m, sys; sys.exit("+cpu" in m.version("torchvision"))'; then
  echo "setup_env: torch is a CPU build and torchvision is not: its operators get declared on import"
  cp tools/dev/torchvision_cpu_schemas.py "$site/torchvision_cpu_schemas.py"
  echo "import torchvision_cpu_schemas" > "$site/torchvision_cpu_schemas.pth"
else
  rm -f "$site/torchvision_cpu_schemas.py" "$site/torchvision_cpu_schemas.pth"
fi
"$python" -c 'import torchvision' || stop "torchvision cannot be imported; the lines above are Python's own."

# A CUDA build of torch runs without a GPU, too, but of what it brings a third is for a GPU
# alone. Their packages stay listed, so that pip does not install them again.
"$python" - "$site" <<'PY' || stop "the libraries that torch does not need could not be removed; the lines above are Python's own."
import shutil, sys
from pathlib import Path
import torch
if not torch.version.cuda or torch.cuda.is_available():
    sys.exit()
site = Path(sys.argv[1]).resolve()
# triton compiles for GPUs.
size = sum(path.stat().st_size for path in site.glob('triton/**/*'))
shutil.rmtree(site / 'triton', ignore_errors=True)
import torchvision
with open('/proc/self/maps') as maps:
    loaded = {line.split()[-1] for line in maps}
for path in site.glob('nvidia/**/*'):
    if '.so' in path.name or path.suffix in ('.a', '.bc'):
        if str(path.resolve()) not in loaded:
            size += path.lstat().st_size
            path.unlink()
if size:
    print(f'setup_env: no GPU is in sight: removed {size / 1e6:.0f} MB that torch needs for a GPU alone. '
          'With a GPU make the environment again')
PY

mmcv=$(sed -n 's/^# \(.*mmcv\)==.*/\1/p' "$requirements")
mmcv_version=$(pinned "# $mmcv")
if [ "$device" = auto ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  device=cpu
fi
if [ "$device" = cpu ]; then
  key=cpu
  arch=
else
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  key=cuda$("$python" -c 'import torch; print(torch.version.cuda)')-sm$arch
  command -v nvcc >/dev/null || stop "a GPU is in sight but nvcc is not on PATH. Install the CUDA toolkit $("$python" -c 'import torch; print(torch.version.cuda)'), or build for the CPU: bash tools/setup_env.sh --cpu"
fi
# The wheel is kept per torch build, because pip's own cache would hand out one compiled against another torch.
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/mm_acon/$mmcv-$mmcv_version-torch$("$python" -c 'import torch, sys; print(torch.__version__, "py%d%d" % sys.version_info[:2], sep="-")')-$key

# Called on the left of ||, where bash ignores set -e: hence the explicit returns.
build_mmcv() {
  local work flags visible=${CUDA_VISIBLE_DEVICES-0}
  local -a includes
  work=$(mktemp -d) || return
  # -include makes every source start with the header that takes most of the parsing time; the
  # compiler takes the precompiled form only where flags and macros are the ones of the build.
  # torch before 2.6 is built with the old ABI of the C++ library, and sets this macro itself.
  flags="-DNDEBUG -fwrapv -O3 -g0 -w -fPIC -D_GLIBCXX_USE_CXX11_ABI=$("$python" -c 'import torch; print(int(torch._C._GLIBCXX_USE_CXX11_ABI))')"
  mapfile -t includes < <("$python" -c '
import sysconfig
from torch.utils.cpp_extension import include_paths
for path in [*include_paths(), sysconfig.get_paths()["include"]]:
    print("-I" + path)')
  echo '#include <torch/types.h>' > "$work/mmcv_prefix.h"
  # shellcheck disable=SC2086  # the flags are several words
  g++ $flags "${includes[@]}" -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext \
    -x c++-header "$work/mmcv_prefix.h" -o "$work/mmcv_prefix.h.gch" || return
  [ "$device" = cpu ] && visible=
  # mmcv's setup.py reads its version by exec() and locals(), which since Python 3.13 are no longer
  # one dict. Python imports this module first, and then they are.
  cat > "$work/sitecustomize.py" <<'PY'
import builtins, sys
def exec_here(code, *namespaces, run=exec):
    frame = sys._getframe(1)
    run(code, *(namespaces or (frame.f_globals, frame.f_locals)))
if sys.version_info >= (3, 13):
    builtins.exec = exec_here
PY
  CFLAGS="$flags -include $work/mmcv_prefix.h" MMCV_WITH_OPS=1 MAX_JOBS=$(cores) \
    PYTHONPATH=$work CUDA_VISIBLE_DEVICES=$visible TORCH_CUDA_ARCH_LIST=$arch \
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-cache-dir --no-build-isolation --no-deps \
    --no-binary "$mmcv" "$mmcv==$mmcv_version" --wheel-dir "$work/wheel" || return
  # Moved when complete, so that the cache never holds half a wheel.
  mkdir -p "$wheels" && mv "$work"/wheel/*.whl "$wheels/" && rm -rf "$work"
}
if has "$mmcv" "$mmcv_version" && [ "$(cat "$venv/mmcv_build" 2>/dev/null)" = "$wheels" ]; then
  echo "setup_env: $mmcv $mmcv_version ($key) is there"
else
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    if [ "$device" = cpu ]; then
      echo "setup_env: compiling $mmcv $mmcv_version for the CPU takes 3 to 5 minutes on two cores"
    else
      echo "setup_env: compiling $mmcv $mmcv_version with its CUDA operators for compute capability $arch takes about 40 minutes divided by half your $(cores) cores; --cpu avoids it"
    fi
    step "compiling $mmcv $mmcv_version ($key)" build_mmcv
  fi
  step "installing $mmcv $mmcv_version from $wheels" pip_install --force-reinstall --no-deps "$wheels"/*.whl
  echo "$wheels" > "$venv/mmcv_build"
fi

# What was compiled of the same sources is kept beside mmcv's wheel.
sources=$({ find setup.py mm_acon/ops/csrc -type f -print0 | sort -z | xargs -0 cat; g++ --version; } | sha256sum)
built=${wheels%/*}/mm_acon-${sources:0:16}-${wheels##*/}
ext=_ext$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
install_mm_acon() {
  if [ -f "$built/$ext" ]; then
    cp "$built/$ext" mm_acon/ || return
    MM_ACON_WITH_OPS=0 pip_install --no-build-isolation --no-deps -e .
    return
  fi
  pip_install --no-build-isolation --no-deps -e . || return
  rm -rf "${wheels%/*}"/mm_acon-*-"${wheels##*/}"
  mkdir -p "$built" && cp "mm_acon/$ext" "$built/unfinished" && mv "$built/unfinished" "$built/$ext"
}
step "installing mm_acon in editable mode" install_mm_acon
"$python" -c 'import mmcv.ops, mmdet, mmseg, mmpretrain, mm_acon' \
  || stop "the packages do not import together; the lines above are Python's own."
echo "setup_env: ready in $((SECONDS - started)) s. Use it with: source ${venv##*/}/bin/activate"
