#!/usr/bin/env bash
# Steps, passes without gradients, memory and sweeps on one GPU, in bfloat16 at the shapes of a 1B Llama's layer, beside PEFT
# and the frozen model, in about 8 minutes; results go to experiments/perf/gpu.
#
#   pip install -e ".[bench,quant]" && bash experiments/perf/gpu.sh
#
# Without a GPU: DEVICE=cpu SHAPES=llama-192 VARIANTS=lora ROUNDS=1 OUT=/tmp/gpu bash experiments/perf/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${DEVICE:-cuda} rounds=${ROUNDS:-5} out=${OUT:-experiments/perf/gpu}
first=${VARIANTS:-lora,rslora,lora_plus,lora_fa,pissa,milora,dora,adalora,vera}
each=(--shapes "${SHAPES:-llama-1b}" --device "$device" --dtype bfloat16 --rounds "$rounds")

# What is asked first comes first: a machine may be lent for minutes only.
timeout 240 python -m lora_zoo.bench --what step,inference,memory --variants "$first" "${each[@]}" --out "$out"
quantization=$([ "$device" = cuda ] && echo nf4 || echo reference_nf4)
for base in null "$quantization"; do
    timeout 60 python -m lora_zoo.run +variant=lora rank=8 target_modules=all-linear "model.quantization=$base" steps=60 tracking=none \
        eval_before_training=false eval_splits='[validation]' task.sizes.validation=50 forgetting_text=null "out=$out/runs"
done
timeout 120 python -m lora_zoo.bench --what sweep --device "$device" --rounds 1 --out "$out"
if [ -z "${VARIANTS:-}" ]; then # all the others, as many as the time allows
    timeout 240 python -m lora_zoo.bench --what step "${each[@]}" --rounds 3 --out "$out/zoo" || echo "not every variant was measured"
fi
