"""What people do wrong: what they typed, and a part of the line that must tell them.

The words are typed in a folder with the files that `desk` makes. A case is `words: part of the line`, or
`words: (part, what is wrong with the file)` where the words alone do not show it.
"""

import json
import shutil
from pathlib import Path

from PIL import Image

Cases = dict[str, str | tuple[str, str]]
CSV = "task=classification task.dataset=csv task.data_files={train:FILE}"
PAIRS = "task=causal_lm task.dataset=csv task.data_files={train:pairs.csv}"
PHOTOS = "task=image_classification task.data_dir=photos"
CHOSEN = "task=options task.dataset=csv task.data_files={train:pairs.csv}"
TALK = "task=instructions task.dataset=csv task.data_files={train:talk.csv}"
SCORED = "task=regression task.dataset=csv task.data_files={train:FILE}"


def csv(file: str, more: str = "") -> str:
    return f"{CSV.replace('FILE', file)} model=encoder {more}".strip()


def scored(file: str) -> str:
    return f"{SCORED.replace('FILE', file)} model=encoder"


MISTAKES: dict[str, Cases] = {
    "Names and keys": {
        "+variant=dorra": "unknown variant 'dorra'. Did you mean 'dora'?",
        "varient=dora": "unknown key 'varient'. Did you mean 'variant'?",
        "rnak=8": "unknown key 'rnak'. Did you mean 'rank'?",
        "+foo=1": "unknown key 'foo'",
        "task=pocketsql": "unknown task 'pocketsql'. Did you mean 'pocket-sql'?",
        "task=": "task= names nothing",
        "task.lrr=1": "unknown key of task 'lrr'. Did you mean 'lr'?",
        "task.type=casual_lm": "unknown task.type 'casual_lm'. Did you mean 'causal_lm'?",
        "model=pockt": "unknown model 'pockt'. Did you mean 'pocket'?",
        "model=": "model= names nothing",
        "model.dtype=float8": "unknown model.dtype 'float8'",
        "tracking=wandbb": "unknown tracking 'wandbb'. Did you mean 'wandb'?",
        "tracking.mode=onlin": "unknown tracking.mode 'onlin'. Did you mean 'online'?",
        "tracking.backend=comet": "unknown tracking.backend 'comet'",
        "tracking.tags=3": "tracking.tags",
        "tracking.project=": "tracking.project is empty",
        "variant.foo=1": "unknown hyperparameter 'foo'",
        "variant.name=dora": "write variant=dora",
        "alpha=${mine}": "alpha refers to mine, and there is no such key",
        "program=sequence task=pocket-nli": "program.tasks refers to task.options.tasks",
        "variant={}": "unknown variant '{}'",
        "trainer=[]": "trainer is chosen by name",
        "on_nonfinite=explode": "unknown on_nonfinite 'explode'",
        "init=kaimin": "Did you mean 'kaiming'?",
        "init=pissa_niter_0": "between 1 and 1000",
        "+variant=vera init=gaussian": "vera cannot start from init=gaussian",
        "+variant=vera variant.d_initail=1": "Did you mean 'd_initial'?",
    },
    "Experiments": {
        "-m experiment=lora_tabl5": "unknown experiment 'lora_tabl5'. Did you mean 'lora_table5'?",
        "experiment=lora_table5": "is a sweep over task, target_modules, seed: add -m",
        "-m experiment=lora_table5,lora_table6": "a sweep is one experiment",
        "forgetting_text=no-such-text.txt": "No such file",
        "task=pocket-nli forgetting_text=": "forgetting_text",
    },
    "Seeds where they decide": {
        "seed=auto": "seed=auto adds seeds to the cells of a sweep: add -m",
        "-m +variant=lora seed=auto": "nothing to compare",
        "-m task=pocket-sql,pocket-nli seed=auto": "nothing to compare: no two of the cells",
        "-m +variant=lora,dora seed=auto,1": "write seed=auto alone",
        "-m +variant=lora,dora seed=auto seed=1": "write seed=auto alone",
        "-m +variant=lora,dora seeds.most=5": "seeds.most=5 belongs to seed=auto",
        "-m +variant=lora,dora seed=auto seeds.mots=5": "Did you mean 'most'?",
        "-m +variant=lora,dora seed=auto seeds.most=2": "seeds.most must be at least 3; got 2",
        "-m +variant=lora,dora seed=auto seeds.most=many": "could not be converted to Integer",
        "-m +variant=lora,dora seed=auto seeds.first=9 seeds.most=5": "is more than seeds.most=5",
        "-m +variant=lora,dora seed=auto seeds.margin=-0.1": "seeds.margin must be at least 0; got -0.1",
        "-m +variant=lora,dora seed=auto seeds.margin=nan": "seeds.margin must be a finite number",
        "-m +variant=lora,dora seed=auto seeds.hours=0": "seeds.hours must be above 0; got 0.0",
        "-m +variant=lora,dora seed=auto seeds.against=variant=pissa": "no cell has variant=pissa",
        "-m +variant=lora,dora seed=auto seeds.against=lora": "give best, all, claim:ID or one of",
        "-m +variant=lora,dora seed=auto seeds.against=claim:rslora/rank-pay": "Did you mean",
        "-m +variant=lora,dora seed=auto seeds.against=claim:rslora/rank-pays": "+experiment=rslora_ranks",
        "-m +variant=lora,dora seed=auto hydra/sweeper=optuna": "seed=auto has a sweeper of its own",
    },
    "Learning rates that are found": {
        "lr=auto": "lr=auto finds a rate for each of the cells of a sweep: add -m",
        "-m +variant=lora,dora lr=auto,0.1": "auto finds the learning rate by itself; write lr=auto alone",
        "-m +variant=lora,dora lr=auto lr=0.1": "write lr=auto alone",
        "-m +variant=lora,dora task.lr=auto lr=0.1,0.2": "task.lr=auto lr=0.1,0.2: auto finds",
        "-m lr=1e-3 task.lr=1e-3,2e-3": "no effect: it is a default, and lr=0.001 takes its place",
        "-m steps=1 task.epochs=1,2": "no effect: it is a default, and steps=1 takes its place",
        "-m recipe=lora_gpt2_nlg task.batch_size=4,8": "and batch_size=8 takes its place",
        "-m +variant=lora,dora rates.budget=900": "rates.budget=900 belongs to lr=auto",
        "-m +variant=lora,dora seed=auto rates.count=8": "rates.count=8 belongs to lr=auto",
        "-m +variant=lora,dora lr=auto rates.bugdet=900": "Did you mean 'budget'?",
        "-m +variant=lora,dora lr=auto rates.count=2": "rates.count must be at least 4; got 2",
        "-m +variant=lora,dora lr=auto rates.budget=20": "too small for 8 rates; give 24",
        "-m +variant=lora,dora lr=auto rates.budget=many": "could not be converted to Integer",
        "-m +variant=lora,dora lr=auto steps=100,200": "the runs are of [100, 200] steps: give rates.budget",
        "-m +variant=lora,dora lr=auto trainer.warmup_steps=9": "give a share below 1",
        "-m +variant=lora,dora lr=auto epochs=2": "given in epochs: give rates.budget=STEPS",
        "-m +variant=lora,dora lr=auto hydra/sweeper=optuna": "lr=auto has a sweeper of its own",
    },
    "Comparisons": {
        "compare lorra --against lora": "unknown variant 'lorra'. Did you mean 'lora'?",
        "compare dora --against lora,pisa": "unknown variant 'pisa'. Did you mean 'pissa'?",
        "compare ./none.py --against lora": "there is no such file",
        "compare ./plain.py --against lora": ("has no line like @register", "a file without a variant"),
        "compare eva --against lora": "eva is an initialisation: write init=eva",
        "compare init=eav --against lora": "Did you mean 'eva'?",
        "compare pissa --against init=pissa": "one and the same run",
        "compare dora": "--against",
        "compare dora --against=": "--against names nothing",
        "compare dora --against lora --hours 0": "--hours 0: give a number above 0",
        "compare dora --against lora --hours two": "--hours",
        "compare dora --against lora --quick --hours 2": "give one of them",
        "compare dora --against lora --seeds 2": "a verdict takes at least 3",
        "compare dora --against lora --rates 1,x": "--rates 1,x are no numbers",
        "compare dora --against lora --jobs 0": "--jobs 0: give 1 or more",
        "compare dora --against lora --agianst x": "unknown flag '--agianst'. Did you mean '--against'?",
        "compare dora --against lora lr=1e-3": "the comparison gives it itself",
        "compare dora --against lora rnak=8": "unknown key 'rnak'. Did you mean 'rank'?",
        "compare dora --against lora --task pocketsql": "Did you mean 'pocket-sql'?",
        "compare dora --against lora --model encoder": "is an encoder (bert)",
        "compare dora --against lora --rank 129": "the smaller side",
        "compare ia3 --against lora --at parameters": "ia3 has no rank that could meet it",
        "compare dora --against lora --rank 8 rank=4": "give one of them",
    },
    "Programs": {
        "program=relra": "unknown program 'relra'. Did you mean 'relora'?",
        "program=relora program.round=2": "Did you mean 'rounds'?",
        "program=relora program.rounds=x": "relora: rounds must be an integer; got 'x'",
        "program.rounds=2": "program.rounds is a key of no program",
        "program.name=relora": "write program=relora",
        "program=relora program.rounds=3 steps=2": "rounds must lie between 1 and the 2 steps; got 3",
        "+variant=dora program=relora steps=8": "the ΔW of dora is no product of two",
        "+variant=full program=relora steps=8": "full adapts no matrix",
        "+variant=dora program=lora_drop steps=8": "give program.share=false",
        "program=lora_drop program.threshold=2 steps=8": "threshold <= 1",
        "+variant=full program=lora_drop steps=8": "full adapts none",
    },
    "Grammar and flags": {
        "rank=[": "rank=[ cannot be read",
        "rank='3": "cannot be read",
        "rank": "write for example rank=…",
        "foo": "is no KEY=VALUE",
        "=5": "is no KEY=VALUE",
        "--multirunn rank=1,2": "Did you mean '--multirun'?",
        "--cfgg job": "Did you mean '--cfg'?",
        "--cfg jobb": "Did you mean 'job'?",
        "--cfg": "unknown word after --cfg/-c",
        "--config-dir x": "--config-dir cannot be given",
        "rank=1,2": "add -m to sweep",
        "-m rank=interval(1,2)": "names no values one by one",
        "-m rank=range(5,1)": "gives no value",
        "-m rank=range(1,9,0)": "has no end",
        "-m rank=range(1,999999)": "more than 10,000",
        "-m variant=lora,dorra": "unknown variant 'dorra'",
        "-m rank=2,zwei": "could not be converted to Integer",
        "-m seed=1,2,-3": "seed must be at least 0; got -3",
        "hydra.foo=1": "foo",
        "hydra.mode=MULTIRUN": "hydra.mode cannot be given",
        "hydra.sweeper.params={rank:3}": "hydra.sweeper.params cannot be given",
        "hydra.run.dir=file.txt": "file.txt is a file; give a folder",
        "hydra/launcher=jobblib": "jobblib",
        "hydra.launcher._target_=os.abort": "cannot be given",
        "~rank": "only keys of trainer can be taken out",
        "task@rank=sick": "packages (@) cannot be chosen",
        "alpha=${mul:2,${rnk}}": "rnk",
        "rank=${rank}": "refers to itself",
    },
    "Numbers": {
        "lr=nan": "lr must be a finite number; got nan",
        "lr=inf": "lr must be a finite number; got inf",
        "lr=1e400": "lr must be a finite number",
        "lr=0": "lr must be above 0; got 0.0",
        "lr=fast": "'fast'",
        "alpha=0": "alpha must be above 0; got 0",
        "alpha=nan": "alpha must be a finite number",
        "alpha=inf": "alpha must be a finite number",
        "alpha_pattern={q:0}": "alpha_pattern.q must be above 0; got 0",
        "alpha_pattern={q:nan}": "alpha_pattern.q must be a finite number",
        "lora_dropout=nan": "lora_dropout must be a finite number",
        "lora_dropout=1": "lora_dropout must be below 1; got 1.0",
        "+variant=dora init=pissa lora_dropout=0.1": "lora_dropout=0",
        "rank=0": "rank must be at least 1; got 0",
        "rank=-3": "rank must be at least 1; got -3",
        "rank=1.5": "could not be converted to Integer",
        "rank=null": "rank",
        "rank=129": "rank must lie between 1 and the smaller side",
        "rank=99999999999999999999": "rank must be at most 65536",
        "rank_pattern={q:0}": "rank_pattern.q must be at least 1",
        "rank_pattern={q:129}": "the smaller side",
        "rank_pattern={q:4-}": "rank_pattern.q: rank must be an integer, or two for the first and the last",
        "rank_pattern={q:0-4}": "rank_pattern.q must be at least 1",
        "rank_pattern={embed:4-8} target_modules=[q,embed]": "model.embed_tokens lies in no layer",
        "rank_pattern={zz:4}": "unknown target among the adapted ones 'zz'",
        "rank_pattern=3": "rank_pattern",
        "budget=some": "budget=some is no number of parameters",
        "budget=1": "at rank 1 has 2,048 trainable parameters",
        "budget=-5": "budget=-5 is no number of parameters",
        "budget=20k rank=4": "drop one of them",
        "steps=0": "steps must be at least 1; got 0",
        "steps=3 epochs=2": "exclude each other; give one",
        "epochs=inf": "epochs",
        "batch_size=0": "batch_size must be at least 1; got 0",
        "seed=-1": "seed must be at least 0; got -1",
        "seed=99999999999": "seed must be at most 4294967295",
        "data_seed=99999999999": "data_seed must be at most 4294967295",
        "threads=0": "threads must be at least 1",
        "threads=100000000000": "threads must be at most 1024",
        "save_minutes=nan": "save_minutes must be a finite number",
        "task.validation_fraction=2": "task.validation_fraction must be below 1; got 2.0",
        "task.max_length=1": "task.max_length must be at least 2",
        "task.num_beams=0": "task.num_beams must be at least 1",
        "task.sizes.test=0": "task.sizes.test must be at least 1; got 0",
        "task.sizes.tset=3": "unknown split in task.sizes 'tset'. Did you mean 'test'?",
        "+variant=vera variant.d_initial=nan": "variant.d_initial must be a finite number",
        "+variant=vera variant.d_initial=abc": "d_initial must be a number; got 'abc'",
        "+variant=lora_plus variant.loraplus_lr_ratio=0": "loraplus_lr_ratio must be above 0",
        "+variant=lora_fa variant.mode=foo": "mode must be",
        "+variant=adalora variant.tinit=0.9 variant.tfinal=0.5": "leave no step",
        "+variant=adalora variant.init_r=2": "1 <= rank <= init_r",
        "+variant=adalora rank=100": "1 <= rank <= init_r",
    },
    "Targets and lists": {
        "target_modules=[]": "target_modules is empty",
        "target_modules=": "target_modules is empty",
        "target_modules=3": "must be a name or a list of names; got 3",
        "target_modules=[[q]]": "must be a name or a list of names",
        "target_modules={q:1}": "unknown target '{q:1}'",
        "target_modules=[q,vv]": "unknown target 'vv'. Did you mean 'v'?",
        "target_modules=[gates]": "Did you mean 'gate'?",
        "target_modules=[lora_quer]": "Did you mean 'lora_query'?",
        "target_modules=['(']": "'(' is no regular expression",
        "target_modules=.*[_proj": "is no regular expression",
        "exclude_modules=[q,v]": "nothing is left to adapt",
        "exclude_modules=null": "must be a name or a list of names",
        "modules_to_save=[nothing]": "unknown module 'nothing'",
        "modules_to_save=[all-norm]": "Did you mean 'all-norms'?",
        "layers=99": "layers=99: the model's layers are 0-3",
        "layers=[]": "layers is empty",
        "layers=abc": "'abc' is no layer",
        "model.quantization=nf5": "unknown model.quantization 'nf5'. Did you mean 'nf4'?",
        "model.quantization=int8 model.bnb_4bit_use_double_quant=true": (
            "model.bnb_4bit_use_double_quant=True has no effect with model.quantization=int8"
        ),
        "init=loftq": (
            "init=loftq makes up for the error of a quantised base, and model.quantization=null: give "
            "model.quantization=nf4 or, in plain torch, reference_nf4"
        ),
        "recipe=qlra": "unknown recipe 'qlra'. Did you mean 'qlora'?",
        "layers=true": "True is no layer",
        "layers=randm:2": "'randm:2' is no layer; write for example [0,2-5], 8-, -1 or random:4",
        "layers=random:5": "layers=random:5: the model's layers are 0-3",
        "layers=random:0": "'random:0' is no layer",
        "eval_splits=[]": "eval_splits is empty",
        "eval_splits=[tset]": "unknown eval_splits 'tset'. Did you mean 'test'?",
        "eval_splits=test": "eval_splits",
        "task.metrics=[]": "task.metrics is empty",
        "task.metrics=[exactmatch]": "Did you mean 'exact_match'?",
        "task.metrics=[./nope.py]": "metric './nope.py' is neither a file",
        "task.metrics=[accuracy]": "metric 'accuracy' cannot judge the answers of type=causal_lm",
        "task=pocket-nli task.labels=[]": "task.labels is empty",
        "task=pocket-nli task.labels=['yes','yes']": "names 'yes' twice",
        "task=pocket-nli task.labels=['yes']": "two labels or more",
    },
    "Trainer": {
        "trainer.warmup_stepz=3": "Did you mean 'warmup_steps'?",
        "trainer.learning_rate=3": "use lr=",
        "trainer.max_steps=3": "use steps=",
        "trainer.logging_steps=0": "trainer.logging_steps must lie between",
        "trainer.eval_steps=-1": "trainer.eval_steps must lie between 0",
        "trainer.eval_steps=abc": "must be a number of steps, 0 for never; got 'abc'",
        "trainer.gradient_accumulation_steps=0": "must lie between 1 and",
        "trainer.gradient_accumulation_steps=1.5": "must be an integer; got 1.5",
        "trainer.fp16=true": "needs a GPU",
        "trainer.bf16=true trainer.fp16=true": "exclude each other; give one",
        "trainer.bf16=maybe": "must be true or false; got 'maybe'",
        "trainer.optim=unknown": "unknown",
        "trainer.optim=null": "must be a name; got None",
        "trainer.optim=lomo": "lomo_optim",
        "trainer.lr_scheduler_type=unknown": "unknown",
        "trainer.lr_scheduler_type=cosine_with_min_lr": "min_lr",
        "trainer.lr_scheduler_type=polynomial trainer.warmup_steps=1": "no rate after step 1 of 1",
        "trainer.lr_scheduler_type=reduce_lr_on_plateau trainer.eval_steps=1": "Choices: exact_match, nll",
        "trainer.dataloader_num_workers=-1": "must lie between 0 and 256",
        "trainer.max_grad_norm=nan": "trainer.max_grad_norm must be a finite number",
        "trainer.max_grad_norm=abc": "got 'abc'",
        "trainer.weight_decay=-1": "must lie between 0",
        "trainer.adam_beta1=2": "must lie between 0 and 1",
        "trainer.label_smoothing_factor=2": "must lie between 0 and 1",
        "trainer.save_total_limit=-1": "must lie between 1",
        "trainer.load_best_model_at_end=true": "give trainer.eval_steps",
        "trainer.deepspeed=x": "cannot be given",
        "trainer.push_to_hub=true": "cannot be given",
    },
    "Task files": {
        "task=none.yaml": "unknown task 'none.yaml'",
        "task=broken.yaml": ("the file is no YAML", "`a: [`"),
        "task=binary.yaml": ("the file is no YAML", "bytes that are no text"),
        "task=list.yaml": ("must hold keys and values", "a list"),
        "task=lacking.yaml": ("the file must give metrics", "no `metrics`"),
        "task=strange.yaml": ("unknown key 'colums'. Did you mean 'columns'?", "`colums: …`"),
        "task=typed.yaml": ("lr", "`lr: fast`"),
        "task=folder.yaml": ("unknown task 'folder.yaml'", "a folder"),
        "task=sick": "its train file train.tsv is not in the working folder; give task.data_dir",
        "task=causal_lm": "task.dataset must be given",
        f"{PAIRS} task.columns={{prompt:question}}": "unknown column 'question'. Choices: prompt, target",
    },
    "Templates": {
        f"{PAIRS} task.template={{foo}}": "task.template: unknown column 'foo'. Choices: prompt",
        f"{PAIRS} task.template={{prompt.__class__}}": "a field is the plain name of a column",
        f"{PAIRS} task.template={{prompt[0]}}": "a field is the plain name of a column",
        f"{PAIRS} task.template={{prompt!r}}": "a field is the plain name of a column",
        f"{PAIRS} task.template={{prompt:>9999999}}": "a field is the plain name of a column",
        f"{PAIRS} task.template={{}}": "a field is the plain name of a column",
        f"{PAIRS} task.template={{prompt": "cannot be read",
        f"{PAIRS} task.template=same": "names no column",
        f"{PAIRS} task.template={{prompt}}{{target}}": "would tell the model the answer",
    },
    "Data": {
        csv("missing.csv"): "its train file missing.csv is not in",
        csv("folder.yaml"): ("its train file folder.yaml is not in", "a folder"),
        csv("empty.csv"): ("its train file empty.csv is empty", "no bytes"),
        csv("header.csv"): ("train", "a header alone"),
        csv("semicolons.csv"): ("Choices: text;label", "`;` between the columns"),
        csv("ragged.csv"): ("cannot load task.dataset=csv", "one line has more cells"),
        csv("latin.csv"): ("is no UTF-8 text", "Latin-1"),
        csv("nan.csv"): ("column text has empty values, the first in example 2", "a cell is `NaN`"),
        "task.metric_arguments={f1:{average:macro}}": "unknown metric in task.metric_arguments 'f1'",
        csv("good.csv", "task.metrics=[f1] task.metric_arguments={f1:{averag:macro}}"): "averag",
        csv("good.csv", "+trainer.dataloader_drop_last=true batch_size=100"): "leaves no batch",
        csv("hole.csv"): ("column label has empty values", "a label is missing"),
        csv("good.csv", "task.labels=[yes,maybe]"): "unknown label 'no'",
        csv("one.csv"): ("its labels are all 'yes'", "only one label"),
        csv("good.csv", "task.columns.text=txet"): "unknown column 'txet'. Did you mean 'text'?",
        csv("good.csv", "task.columns.label=text"): "both name the column 'text'",
        csv("good.csv", "task.splits.test=tset"): "unknown split 'tset'",
        csv("good.csv", "task.validation_fraction=0.001 eval_splits=[test]"): "none of the splits",
        csv("two.csv", "task.validation_fraction=0.9"): ("leaves one split empty", "two examples"),
        csv("good.csv", "task.metrics=[bleu]"): "metric 'bleu' cannot judge",
        csv("good.csv", "task.dataset=csvv"): "cannot load task.dataset=csvv",
        csv("good.csv", "task.dataset=parquet"): "cannot load task.dataset=parquet",
        csv("good.csv", "task.dataset=json"): "cannot load task.dataset=json",
        csv("broken.json", "task.dataset=json"): ("cannot load task.dataset=json", "half a line"),
        csv("good.csv", "+task.options.foo=1"): "cannot load task.dataset=csv",
        "task=classification task.dataset=csv model=encoder": "give task.data_files",
        f"{CSV.replace('train:FILE', 'test:good.csv')} model=encoder": "no train split",
        scored("good.csv"): "the label 'yes' of example 0 is no finite number",
        scored("infinite.csv"): ("holds inf", "a score is `inf`"),
        "task.type=classification task.metrics=[accuracy]": "needs a column text",
    },
    "Instruction data": {
        f"{TALK} task.chat_template=none.jinja": "task.chat_template=none.jinja: No such file",
        TALK: "the model's tokenizer has no chat template; give a file with one",
        f"{TALK} task.chat_template=chat.jinja task.columns={{output:anser}}": "unknown column 'anser'",
        f"{TALK.replace('talk.csv', 'pairs.csv')} task.chat_template=chat.jinja": "reads a column messages",
        f"{TALK} task.chat_template=endless.jinja": ("no token that ends it", "answers without an end"),
    },
    "Plain language modelling": {
        "task=language_modelling": "give task.data_files",
        "task=language_modelling task.data_files={train:letter.txt}": ("nothing can be held out", "one line"),
        "task=language_modelling task.data_files={train:two.txt}": (
            "of 1 tokens predicts",
            "one letter a line",
        ),
        "task=language_modelling task.data_files={train:pairs.csv} model=encoder": "is an encoder (bert)",
    },
    "Options": {
        "task=options task.dataset=csv task.data_files={train:pairs.csv}": "unknown column 'options'",
        f"{CHOSEN} task.columns={{prompt:prompt,option1:target,label:label}}": "unknown column 'label'",
    },
    "Images": {
        "task=image_classification": "needs files; give task.data_files",
        "task=image_classification task.data_dir=nowhere": "task.data_dir=nowhere is no folder",
        "task=image_classification task.data_dir=photos": "the image processor of model.path=pocket",
        PHOTOS.replace("photos", "torn"): ("image 0 0.png cannot be read", "a file is no image"),
        f"{PHOTOS} task.columns={{image:label,label:image}}": "the column label holds",
        f"{PHOTOS} task.columns={{image:img,label:label}}": "unknown column 'img'. Did you mean 'image'?",
    },
    "Models": {
        "model=/no/such/folder": "there is no such folder",
        "model=nobody/nothing": "cannot be loaded as a model in Hub format",
        "model=./empty": ("holds no config.json", "an empty folder"),
        "model=./malformed": ("cannot be loaded", "config.json is `{`"),
        "model=./unknown": ("cannot be loaded", "an unknown `model_type`"),
        "model=./weightless": ("cannot be loaded", "no weights"),
        "model=./shardless": ("cannot be loaded", "one of several shards is missing"),
        "model=./truncated": ("cannot be loaded", "half of model.safetensors"),
        "model=./flipped": ("cannot be loaded", "the header's first bytes are flipped"),
        "model=./nans": ("holds NaN or inf", "a weight is NaN"),
        "model=./other": ("lack most of the model's weights", "another architecture's weights"),
        "model=./resized": ("cannot be loaded", "weights of another size than config.json says"),
        "model=./wordless": ("the tokenizer of model.path", "no tokenizer"),
        "model=encoder": "is an encoder (bert), which reads both ways",
        "task.type=seq2seq": "cannot be loaded",
        csv("good.csv", "target_modules=[gate]"): "this model has no role 'gate'",
        csv("good.csv", "rank=17"): "the smaller side",
        "model.attn_implementation=nope": "cannot be loaded",
        "model=encoder dry_run=true": "is an encoder (bert)",
        "rank=129 dry_run=true": "the smaller side",
        "model=./malformed dry_run=true": "cannot be loaded",
    },
    "Where results go": {
        "out=": "out is empty",
        "out=file.txt": "file.txt is a file; give a folder",
        "out=file.txt/below": "file.txt is a file; give a folder",
        "-m seed=0,1 out=file.txt": "file.txt is a file; give a folder",
        "out=null": "out",
    },
}
"""Section -> words -> a part of the line."""


def desk(folder: Path) -> None:
    """The files that the cases speak of."""
    rows = [f"a cat number{n % 7} sits,{('yes', 'no')[n % 2]}" for n in range(20)]
    tables = {
        "good.csv": ["text,label", *rows],
        "header.csv": ["text,label"],
        "semicolons.csv": ["text;label", *(row.replace(",", ";") for row in rows)],
        "ragged.csv": ["text,label", *rows[:5], "a,b,c,d", *rows[5:]],
        "nan.csv": ["text,label", *rows[:2], "NaN,yes", *rows[3:]],
        "hole.csv": ["text,label", *rows[:2], "a cat,", *rows[3:]],
        "one.csv": ["text,label", *(row.replace("no", "yes").replace("yesmber", "") for row in rows)],
        "two.csv": ["text,label", *rows[:2]],
        "infinite.csv": ["text,label", "a cat,1.5", "a dog,inf", *(f"a cat,{n}" for n in range(18))],
        "pairs.csv": ["prompt,target", *(f"question {n},answer {n}" for n in range(20))],
        "talk.csv": ["instruction,output", *(f"question {n},answer {n}" for n in range(20))],
        "chat.jinja": ["{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"],
        "endless.jinja": ["{% for m in messages %}{{ m.content }}{% endfor %}"],
        "typed.yaml": ["type: causal_lm", "dataset: pocket-sql", "metrics: [exact_match]", "lr: fast"],
        "lacking.yaml": ["type: causal_lm", "dataset: pocket-sql", "lr: 1e-3"],
        "strange.yaml": ["type: causal_lm", "dataset: csv", "metrics: [bleu]", "lr: 1e-3", "colums: {}"],
        "broken.yaml": ["a: ["],
        "list.yaml": ["- a", "- b"],
        "broken.json": ['{"text": "a", "label": "yes"}', '{"text": "b", "lab'],
        "file.txt": ["a file"],
        "letter.txt": ["a"],
        "two.txt": ["a", "b"],
        "plain.py": ["x = 1"],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    for number, (images, kind) in enumerate((i, k) for i in ("photos", "torn") for k in ("cat", "dog") * 4):
        path = folder / images / "train" / kind / f"{number % 8}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    (folder / "torn" / "train" / "cat" / "0.png").write_bytes(b"no image")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)))
    (folder / "latin.csv").write_bytes("text,label\ncafé,yes\n".encode("latin-1"))
    (folder / "folder.yaml").mkdir()
    _models(folder)


def _models(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForSequenceClassification, LlamaForCausalLM

    from lora_zoo.pocket import HUB

    bert = BertConfig(
        vocab_size=1000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    (folder / "encoder").mkdir()
    BertForSequenceClassification(bert).save_pretrained(folder / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(HUB) / name, folder / "encoder")
    (folder / "empty").mkdir()
    names = "malformed unknown weightless shardless truncated flipped nans other resized wordless"
    for name in names.split():
        shutil.copytree(HUB, folder / name)
    (folder / "malformed" / "config.json").write_text("{")
    _edit(folder / "unknown", model_type="nothing")
    _edit(folder / "resized", intermediate_size=100)
    (folder / "weightless" / "model.safetensors").unlink()
    (folder / "shardless" / "model.safetensors").unlink()
    LlamaForCausalLM.from_pretrained(HUB).save_pretrained(folder / "shardless", max_shard_size="500KB")
    next((folder / "shardless").glob("model-*.safetensors")).unlink()
    whole = (folder / "truncated" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    flipped = bytes(b ^ 255 for b in whole[:16]) + whole[16:]
    (folder / "flipped" / "model.safetensors").write_bytes(flipped)
    tensors = load_file(folder / "nans" / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, folder / "nans" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "encoder" / "model.safetensors", folder / "other" / "model.safetensors")
    for path in (folder / "wordless").glob("token*"):
        path.unlink()


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
