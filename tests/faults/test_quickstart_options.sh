#!/usr/bin/env bash
# The quickstart refuses wrong options with one sentence before it installs, builds or writes anything.
set -u
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0

# refused CODE WORDS OPTION...: exit code, one line on standard error that holds the words, nothing on standard output.
refused() {
    local code=$1 words=$2 got
    shift 2
    ./launcher/quickstart "$@" >"$scratch/stdout" 2>"$scratch/stderr" </dev/null
    got=$?
    if [ $got -ne "$code" ] || [ "$(wc -l <"$scratch/stderr")" -ne 1 ] || ! grep -qF -- "$words" "$scratch/stderr" ||
        [ -s "$scratch/stdout" ]; then
        echo "quickstart $*: exit code $got (want $code), standard output and error:" >&2
        cat "$scratch/stdout" "$scratch/stderr" >&2
        failures=$((failures + 1))
    fi
}

mkdir "$scratch/model" "$scratch/full" "$scratch/hollow"
echo '{}' >"$scratch/model/config.json"
echo '{"prompt": "a", "chosen": "b", "rejected": "c"}' >"$scratch/pairs.jsonl"
touch "$scratch/full/mine"
out=$scratch/out
pair=(--model "$scratch/model" --data "$scratch/pairs.jsonl" --out "$out")

refused 2 "no option --modle" --modle x --out "$out"
refused 2 "is no option" "$scratch/pairs.jsonl" --out "$out"
refused 2 "--ranks needs a value" --out "$out" --ranks
refused 2 "--ranks needs a value" --out "$out" --ranks --beta 1
refused 2 "--epochs needs a value" --out "$out" --epochs=
refused 2 "--beta is given twice" --out "$out" --beta 1 --beta=1
refused 2 "--learning_rate is given twice" --out "$out" --learning_rate 1e-5 --learning-rate 1e-5
for value in 0 -1 1.5 two 1025 99999999999; do refused 2 "--ranks is '$value'" --out "$out" --ranks "$value"; done
for value in 0 0.0 -1 x 1e 1.2.3 1e-999 inf nan 1e9; do
    refused 2 "--beta is '$value'" --out "$out" --beta "$value"
    refused 2 "--epochs is '$value'" --out "$out" --epochs "$value"
done
refused 2 "--learning_rate is '2'" --out "$out" --learning_rate 2
refused 2 "belong to a --model" --out "$out" --data "$scratch/pairs.jsonl"
refused 2 "belong to a --model" --out "$out" --eval "$scratch/pairs.jsonl"
refused 2 "--model needs --data" --out "$out" --model "$scratch/model"
refused 2 "are the same file" "${pair[@]}" --eval "$scratch/pairs.jsonl"
refused 1 "no such folder" --out "$out" --model "$scratch/absent" --data "$scratch/pairs.jsonl"
refused 1 "no config.json" --out "$out" --model "$scratch/hollow" --data "$scratch/pairs.jsonl"
refused 1 "absent.jsonl: there is no such file" --out "$out" --model "$scratch/model" --data "$scratch/absent.jsonl"
refused 1 "absent.jsonl: there is no such file" "${pair[@]}" --eval "$scratch/absent.jsonl"
refused 1 "not a quickstart run" --out "$scratch/full"
refused 1 "is not a folder" --out "$scratch/pairs.jsonl"
[ ! -e "$out" ] || { echo "a refused command made its run folder" >&2; failures=$((failures + 1)); }
[ -e "$scratch/full/mine" ] || { echo "a folder of somebody else was moved" >&2; failures=$((failures + 1)); }

page=$(./launcher/quickstart --ranks 3 --help) || failures=$((failures + 1))
for name in model data eval out ranks epochs learning_rate beta seed; do
    grep -q -- "--$name" <<<"$page" || { echo "--help does not name --$name" >&2; failures=$((failures + 1)); }
done
[ $failures -eq 0 ] || { echo "$failures failures" >&2; exit 1; }
