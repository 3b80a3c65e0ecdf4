#!/usr/bin/env bash
# The command line as a user meets it: exit codes, one sentence per failure, the run folder's rules. Needs WPO_BINARY; the
# parts that train need WPO_TEST_DATA and the Python packages for text.
set -uo pipefail
wpo=${WPO_BINARY:-}
if [ -z "$wpo" ] || [ ! -x "$wpo" ]; then
    echo "skipped: WPO_BINARY names no program"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failures=0
checks=0

# expect CODE TEXT WORDS...: exit code, a text in the one line on standard error (in standard output for code 0).
expect() {
    local code=$1 text=$2 got
    shift 2
    checks=$((checks + 1))
    "$@" >out 2>err </dev/null
    got=$?
    if [ "$got" != "$code" ]; then
        echo "FAIL: exit code $got, not $code: $*"
        cat err
        failures=$((failures + 1))
    elif [ "$code" = 0 ] && [ -n "$text" ] && ! grep -qF -- "$text" out; then
        echo "FAIL: '$text' is not in the output of: $*"
        failures=$((failures + 1))
    elif [ "$code" != 0 ] && { ! grep -qF -- "$text" err || [ "$(wc -l <err)" != 1 ] || [ -s out ]; }; then
        echo "FAIL: one line with '$text' is expected from: $*"
        cat out err
        failures=$((failures + 1))
    fi
}

check() {
    checks=$((checks + 1))
    if ! eval "$1"; then
        echo "FAIL: $1"
        failures=$((failures + 1))
    fi
}

# -- help, version, unknown words
for name in init train eval export inspect; do
    expect 0 "Usage: " "$wpo" "$name" --help
    check "grep -q '^Examples:' out"
    expect 0 "Usage: " "$wpo" help "$name"
done
expect 0 "Commands:" "$wpo" --help
expect 0 "backends: cpu" "$wpo" --version
expect 2 "wpo: 'trian' is no command (did you mean train?)" "$wpo" trian
expect 2 "wpo: unknown option --verbose" "$wpo" --verbose
"$wpo" >out 2>err
check "[ $? = 2 ]"
expect 2 "wpo eval: unknown option --modell (did you mean --model?)" "$wpo" eval --modell x
expect 2 "wpo eval: --data is missing" "$wpo" eval --model x
expect 2 "must end in .h5 or .jsonl" "$wpo" eval --model x --data y --per-completion z.csv
expect 2 "wpo eval: beta is 0" "$wpo" eval --model x --data y --beta 0
expect 2 "loss_type sft takes no weights" "$wpo" eval --model x --data y --loss_type sft --weighting greedy
expect 2 "loss_type is 'sigmod', but it must be one of" "$wpo" eval --model x --data y --loss_type sigmod,sft
expect 2 "did you mean sigmoid with weighting none?" "$wpo" eval --model x --data y --loss_type dpo
expect 2 "label_smoothing has no effect with loss_type hinge" "$wpo" eval --model x --data y --loss_type hinge --label_smoothing 0.1
expect 2 "leaves out the reference that --reference names" "$wpo" eval --model x --data y --reference z --reference_free
check "! '$wpo' --help >/dev/full 2>err && grep -q 'No space left' err"
check "'$wpo' train --help-keys | head -1 >out; grep -q '| key |' out"
check "'$wpo' train --help >out; grep -q '^  --loss_type sigmoid|' out"

# -- prepare is a program of its own
expect 1 "run /nowhere/launcher/setup" env WPO_HOME="$folder/home" WPO_PYTHON=/nowhere/python bash -c '
    mkdir -p "$WPO_HOME/launcher/text" && touch "$WPO_HOME/launcher/text/prepare.py" &&
    "$0" prepare --model x 2> >(sed "s#$WPO_HOME#/nowhere#g" >&2); code=$?; sleep 0.1; exit $code' "$wpo"
expect 1 "set WPO_HOME" env WPO_HOME=/nowhere "$wpo" prepare --model x
printf '#!/bin/sh\necho "python got $*"\nexit 3\n' >python
chmod +x python
expect 3 "" env WPO_HOME="$folder/home" WPO_PYTHON="$folder/python" bash -c '"$0" prepare --a "b c" >words; code=$?; echo line >&2; exit $code' "$wpo"
check "grep -q 'prepare.py --a b c' words"

# -- run files
cat >run.yaml <<'END'
model_name_or_path: model
train_file: groups.h5
output_dir: run
END
expect 2 "wpo train: the run file is missing" "$wpo" train
expect 2 "wpo train: nothing.yaml" "$wpo" train nothing.yaml
expect 2 "--betta is no key of wpo (did you mean --beta?)" "$wpo" train run.yaml --betta 1
expect 2 "--learning_rate is '12abc', which is not a number" "$wpo" train run.yaml --learning-rate 12abc
expect 2 "run.yaml and the command line: loss_weights has 1 numbers, but loss_type has 2 losses" "$wpo" train run.yaml --loss_type sigmoid,sft --loss_weights 1
expect 2 "run.yaml and the command line: gamma_beta_ratio has no effect with loss_type ipo: it is for simpo; remove it" "$wpo" train run.yaml \
    --loss_type ipo --gamma_beta_ratio 0.5
printf 'model_name_or_path: model\nbeta 1\n' >bad.yaml
expect 2 "bad.yaml:" "$wpo" train bad.yaml
expect 1 "model_name_or_path: model is no folder" "$wpo" train run.yaml
mkdir model
expect 1 "holds no config.json" "$wpo" train run.yaml
check "[ ! -e run ]"

# -- ranks: every one reads the same file, one speaks
if command -v mpirun >/dev/null; then
    expect 2 "--beta is '1x', which is not a number" mpirun -n 3 "$wpo" train run.yaml --beta 1x
    expect 1 "holds no config.json" mpirun -n 3 "$wpo" train run.yaml
fi

# -- training, where there is something to train
data=${WPO_TEST_DATA:-}
home=${WPO_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
if [ -z "$data" ] || [ ! -x "$home/.venv/bin/python" ]; then
    echo "skipped: the part that trains (WPO_TEST_DATA and .venv are needed)"
else
    export OMP_NUM_THREADS=1
    model=$data/stories260K
    head -12 "$data/alpaca_pairs/train.jsonl" >pairs.jsonl
    "$wpo" prepare --model "$model" --data pairs.jsonl --max-length 512 --out groups.h5 >prepared 2>&1 || cat prepared
    sed -i "s#: model#: $model#" run.yaml
    words=(--per_device_train_batch_size 4 --logging_steps 1 --log_pairs)
    expect 1 "train_file: other.h5 cannot be read: No such file" "$wpo" train run.yaml --train_file other.h5
    check "[ ! -e run ]"
    mkdir -p full && echo text >full/notes
    expect 1 "full is not empty; choose another output_dir" "$wpo" train run.yaml --output_dir full
    expect 1 "holds no run (no run.yaml), so it is not overwritten" "$wpo" train run.yaml --output_dir full --overwrite_output_dir
    check "[ \"\$(ls full)\" = notes ]"
    touch file
    expect 1 "output_dir: file" "$wpo" train run.yaml --output_dir file
    if [ "$(id -u)" != 0 ]; then
        mkdir closed && chmod 500 closed
        expect 1 "closed" "$wpo" train run.yaml --output_dir closed/run
    fi
    expect 0 "" mpirun -n 2 "$wpo" train run.yaml --max_steps 3 --per_device_train_batch_size 2 "${words[@]:2}"
    check "[ \"\$(grep -c '\"loss\"' run/metrics.jsonl)\" = 3 ]"
    check "[ \"\$(wc -l <run/pairs.jsonl)\" = 12 ]"
    check "cmp -s '$model/tokenizer.json' run/model/tokenizer.json && [ -s run/model/config.json ] && [ -s run/log.txt ]"
    check "grep -q '^step 3/3  loss ' err"
    expect 1 "holds a run already; give --resume_from_checkpoint auto" "$wpo" train run.yaml
    { cat run.yaml; printf 'loss_type:\n- sigmoid\n- sft\nloss_weights: [1, 0.5]\n'; } >list.yaml
    expect 0 "" mpirun -n 2 "$wpo" train list.yaml --max_steps 2 --output_dir listed --logging_steps 1
    check "grep -q '^loss_type: \[sigmoid,sft\]$' listed/run.yaml && grep -q 'weighting is not given: none' listed/log.txt"
    check "[ \"\$(grep '\"nll_loss\"' listed/metrics.jsonl | grep -c '\"weights/mean\": 1.0')\" = 2 ]"
    expect 0 "" "$wpo" train listed/run.yaml --output_dir relisted
    check "! grep -q 'not given' relisted/log.txt"
    cp run/run.yaml again.yaml
    expect 0 "" "$wpo" train again.yaml --output_dir second
    check "diff <(grep -v output_dir run/run.yaml) <(grep -v output_dir second/run.yaml) >/dev/null"
    expect 0 "" "$wpo" train run.yaml "${words[@]}" --max_steps 2 --save_strategy steps --save_steps 2 --overwrite_output_dir
    check "[ -d run/checkpoint-2 ] && [ \"\$(grep -c '\"loss\"' run/metrics.jsonl)\" = 2 ]"
    expect 0 "" "$wpo" train run.yaml "${words[@]}" --max_steps 4 --resume_from_checkpoint auto
    check "grep -q 'changed since the run began: max_steps: 2 -> 4' run/log.txt"
    check "[ \"\$(grep -o '^{\"step\": [0-9]*, .*\"loss\"' run/metrics.jsonl | cut -d' ' -f2 | tr -d '\n')\" = 1,2,3,4, ]"
    expect 1 "is not overwritten, because" "$wpo" train run.yaml --model_name_or_path run/model --overwrite_output_dir
    check "[ -d run/checkpoint-2 ]"
    expect 0 '"logps/chosen"' "$wpo" eval --model "$model" --data groups.h5 --json --per-completion scores.jsonl
    check "[ \"\$(wc -l <out)\" = 1 ] && [ \"\$(wc -l <scores.jsonl)\" = 24 ]"
    expect 0 "rewards/margins" mpirun -n 2 "$wpo" eval --model "$model" --reference "$model" --data groups.h5
    if command -v script >/dev/null; then
        TERM=xterm script -qec "stty cols 60; '$wpo' train run.yaml ${words[*]} --max_steps 3 --output_dir third" /dev/null >terminal 2>&1
        check "tr '\r' '\n' <terminal | grep -q 'train 3/3  loss '"
        check "! tr '\r' '\n' <terminal | sed 's/\x1b\[K//g' | grep '^train [0-9]' | grep -q '.\{61\}'"
    fi
fi

echo "$checks checks, $failures failed"
[ "$failures" = 0 ]
