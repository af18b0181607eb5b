"""What ``icnets --help`` and the help of its commands say. Nothing is imported here, so that it is there at once."""

__all__ = ["COMMAND_HELP", "HELP"]

HELP = """\
usage: icnets COMMAND [OPTIONS]

Turn a convolutional network into an Inter-layer Collision (IC) network, train it, and compare the two.

  fit        train a basic or an IC network, with or without weak logit distillation
  validate   accuracy of a trained network on the validation images
  test       accuracy of a trained network on the test images
  predict    classes of image files, by a checkpoint or an exported artefact, as CSV or JSON
  compare    basic, IC, IC with distillation over several seeds: a table, a JSON file, curves; resumes what was stopped
  report     a comparison, or a training, as one HTML page with figures, images and what the units do
  profile    parameters, MACs, measured time and memory beside the basic network
  convert    a basic network's checkpoint in, an IC network's checkpoint out
  export     ONNX, OpenVINO, torch.export or AOTInductor artefacts, each compared with PyTorch before it is kept
  hub        a network with its model card, as a folder or on the Hugging Face Hub
  data       data check: decode every image of a data set, and list what is broken, misfiled or double
  build      compile the CPU kernels for this machine, once: IC units in eager mode then take one pass over memory

  icnets COMMAND --help     options of a command, with an example
  icnets --version          the version

Example, on scikit-learn's handwritten digits (nothing to download):

  icnets fit --config recipes/fit_digits.yaml --name digits
  icnets test --name digits --ckpt_path best

A mistake in arguments or files is one line on stderr and exit status 2. ICNETS_DEBUG=1 shows where it arose.
"""

FIT = """\
usage: icnets fit [--config FILE.yaml] [OPTIONS]

Train a network. Options come from YAML files and, with the last word, from the command line.

  --config FILE                  YAML file of options; can be given several times
  --name NAME                    the run's name: all files go to runs/NAME (default: the network's name and a number)
  --plan                         print what would run: devices, batch, steps, memory, disk, what is missing; then stop
  --ckpt_path last               resume the run NAME, with its own options unless --config is given;
                                 auto: resume it if it is there, else begin
  --save_every N                 a checkpoint every N steps, not only after each epoch; also --keep (default 2)
  --ema DECAY                    validate and keep a running average of the weights, e.g. 0.9999
  --overwrite true               begin anew in the folder of an earlier run
  --target ACC                   say in which epoch, after how many seconds val/top1 first reached ACC, e.g. 0.95
  --seed_everything N            seed of everything (default 0)
  --allow-imports                let the configuration name classes of any package, not only of icnets, torch,
                                 lightning, timm and torchvision; what it names is imported, so only if you trust it

  --model.model NAME             timm's name of a network; ic_NAME for its IC network, where docs/networks.md lists
                                 one, else --model.ic.layers all with the name
  --model.ic.layers all          which convolutions to convert: all, kxk, no-stem
  --model.ic.warm_start gain     how an IC network takes trained weights over: none, gain, calibrate
  --model.init_from FILE         start from these weights, e.g. the basic network's
  --model.teacher FILE           weak logit distillation from the network of this checkpoint, or of timm:NAME
  --model.optimizer sgd          sgd, adamw or lamb; also --model.weight_decay, --model.momentum
  --model.lr N                   default: 0.1, less in small batches; with pretrained, init_from or teacher fine-tuning:
                                 a tenth of it and clipped gradients
  --model.lr_batch N             the global batch that lr is meant for; lr grows with the one in use
  --model.schedule one-cycle     one-cycle, cosine or step; also --model.warmup, --model.min_lr, --model.milestones
  --model.loss cross-entropy     or bce, binary cross-entropy; also --model.bce_threshold
  --model.compile true           torch.compile; also --model.channels_last, --model.activation_checkpointing

  --data.root DIR                folder of class folders, or of train/, val/ (and test/) with these;
                                 default: scikit-learn's digits
  --data.image_size N            height and width the network sees; also --data.in_chans 1 or 3
  --data.batch_size N            images per step (default: 64, fewer in small folders); also --data.workers
  --data.train_shards PATTERN    tar shards, paths or URLs, such as train-{000..146}.tar; with --data.val_shards;
                                 or --data.hf NAME, a Hugging Face dataset
  --data.max_unreadable N        so many unreadable images are skipped (default: one in a thousand)
  --data.auto_augment TEXT       timm's name, e.g. rand-m9-mstd0.5; also --data.mixup, --data.cutmix

  --trainer.max_epochs N         length of the training; also --trainer.accelerator, .devices, .num_nodes
  --trainer.strategy ddp         ddp or fsdp2 (sharded); also --trainer.precision 16-mixed, bf16-mixed, 32-true
  --help-all                     every option there is
  --print_config                 print the options in force as YAML, and stop

Example: train a ResNet-18, then its IC network from it, taught by it.

  icnets fit --name basic --model.model resnet18 --data.root photos --trainer.max_epochs 60
  icnets fit --name ic --model.model ic_resnet18 --data.root photos --trainer.max_epochs 60 \\
    --model.init_from runs/basic/checkpoints/best.safetensors --model.teacher runs/basic/checkpoints/best.safetensors
"""

_EVALUATE = """\
usage: icnets {command} --name RUN --ckpt_path best [OPTIONS]

{summary}

  --name RUN                     the run whose network and options are used (runs/RUN)
  --ckpt_path best               best or last of that run, or the path of a .ckpt file
  --config FILE                  options from this YAML file instead of the run's own
  --data.root DIR                other images than the run's
  --allow-imports                let the options name classes of any package, as for fit
{more}  --help-all                     every option there is

Example:

  icnets {command} --name digits --ckpt_path best{example}
"""

PREDICT = """\
usage: icnets predict MODEL PATHS... [OPTIONS]
       icnets predict --name RUN --ckpt_path best [OPTIONS]

Classify image files, each read as in the network's evaluation, and write path, classes, names and probabilities.

  MODEL                          a checkpoint (.safetensors, or .ckpt in its run's folder), an artefact of icnets export
                                 (.onnx, .xml, .pt2), or timm's name with --pretrained
  PATHS                          image files; folders, searched to any depth; patterns in quotes, like 'new/**/*.jpg';
                                 lists of paths, .txt (one a line) or .csv (column path, or the first)
  --out FILE                     FILE.csv or FILE.json; - for the terminal (default; also --format json)
  --top-k N                      classes of each image (default 5)
  --class-names FILE             names of the classes, one a line, or a list in .json (default: as MODEL keeps them)
  --batch-size N                 images at a time (default 64); also --workers, --device cuda
  --image-size N                 what MODEL doesn't say of its images, or other than it says; also --in-chans, --mean,
                                 --std, --crop-pct, --interpolation
  --contact-sheet FILE.png       the first 100 images with their classes on one sheet
  --grad-cam DIR                 of each image a picture with Grad-CAM's heat map for its class; checkpoints only

Images that can't be read are skipped, listed, and have their reason in the output's column error.
Exit status: 0 all predicted, 1 some images can't be read, 2 for a mistake in the arguments.

The second form predicts the test images of a run, or those in --data.predict_root DIR, with the run's own options, into
--output FILE (default: runs/RUN/predictions.csv), one column a class. It takes the options of icnets test, such as
--config and --allow-imports; --help-all lists those of both.

Example:

  icnets predict runs/ic/checkpoints/best.safetensors new_photos --out classes.csv
"""

COMPARE = """\
usage: icnets compare --config RECIPE.yaml [OPTIONS]

Train the basic network, its IC network, and both with weak logit distillation, over several seeds; then print a table
(error with its interval, parameters, MACs, time per image, epochs to the basic network's accuracy). Each finished run
is a line of a file at once; what was stopped goes on by the same command.

  --config FILE                  the recipe: networks, methods, training, data; for a grid of networks, methods,
                                 trainings and budgets see recipes/studies
  --out DIR                      folder for lines.jsonl, results.json, results.md, curves.png and checkpoints
  --seeds '[0,1,2]'              one training of every method for each
  --workers N                    trainings at the same time; also --threads of each, --accelerator gpu
  --prune true                   remove lines of runs that the recipe no longer has
  --allow-imports                import the data sets and networks that the recipe's imports name, only if you trust it

  --data.root DIR                folder of images, as for fit; default: scikit-learn's digits
  --data.image_size N            height and width the networks see; also --data.in_chans, --data.batch_size
  --network.name NAME            timm's name of the basic network; also --network.options
  --training.epochs N            length of each training; also --training.lr, --training.extra_epochs
  --wld.temperature T            of the distillation; also --wld.schedule.kind, --wld.schedule.weight
  --methods LIST                 what is compared with what; see the recipe
  --help-all                     every option there is

Examples: on one's own images, with the recipe's settings for folders; a grid in a minute.

  icnets compare --config recipes/demo.yaml --data.root photos --out runs/photos
  icnets compare --config recipes/studies/smoke.yaml
"""

REPORT = """\
usage: icnets report RUN... [OPTIONS]

One HTML page about the runs, which needs no network: the table and its verdicts, error by epoch and by second, error
against time and MACs, the worst confusions, the images on which an IC network and its control disagree with the
Grad-CAM of both, how often each unit's branch fires and how w' moved, and how to repeat it all.

  RUN                            folder of icnets compare, such as runs/demo, or of icnets fit
  --out FILE.html                the page (default: report.html in the folder of RUN)
  --method NAME                  the method that is looked at (default: the IC network with the least test error)
  --images N                     images shown on which it and its control disagree (default 12)
  --force                        replace FILE if it exists

The images are read again from where the run found them; without them the page says so and has the rest.

Example:

  icnets report runs/demo
"""

PROFILE = """\
usage: icnets profile NAME [OPTIONS]

What a network costs as basic and as IC network, beside a deeper one: parameters, MACs (with the collisions' part),
measured time and memory.

  NAME                           timm's name of the basic network
  --against NAME                 the deeper network
  --batch-size N                 images in a batch (default 8)
  --image-size N                 pixels (default: the network's own, or 224); also --in-chans, --num-classes
  --threads N                    torch's threads
  --rounds N                     interleaved rounds of each measurement (default 11)
  --device cpu                   cpu or cuda
  --options JSON                 more arguments for timm's network
  --layers                       layer by layer instead: shape, MACs, time of the IC layer and of the basic one in its
                                 place, how often the collision fires; NAME can be a checkpoint too
  --images DIR                   with --layers: a batch of images from this folder, in place of random input
  --json FILE                    write the numbers to this file; - for the terminal

Examples:

  icnets profile resnet50 --against resnet101 --batch-size 1
  icnets profile runs/ic/checkpoints/best.safetensors --layers --images photos
"""

EXPORT = """\
usage: icnets export MODEL [OPTIONS]

Write a network for another engine, reload it there, compare it with PyTorch, and keep it only if both agree.

  MODEL                          a checkpoint of icnets (.safetensors), or a network's name, such as ic_resnet50
  --format onnx                  onnx, openvino, torch-export or aoti (compiled for this machine)
  --out PATH                     the artefact (default: MODEL's name with the format's suffix); --force replaces it
  --no-fuse                      the network's own graph instead of its deployed form
  --int8                         quantise, calibrated on images (onnx, openvino); --max-loss X bounds the accuracy lost
  --data.root DIR                images to compare and calibrate on, as for icnets fit; --images N bounds their number
  --image-size N                 height and width (default: the checkpoint's, or the network's own)
  --num-classes N                of a named network; also --in-chans N, --pretrained
  --tolerance X                  largest error, relative to the output's range (default 1e-4)

It needs pip install 'icnets[export]'.

Example:

  icnets export runs/ic/checkpoints/best.safetensors --format onnx --data.root photos
"""

BUILD = """\
usage: icnets build [--force]

Compile the CPU kernels for this machine, its processor and its PyTorch: about 20 seconds, once. From then on IC units
in eager mode, in training as in evaluation, take one pass over memory where PyTorch's own operators take several; the
numbers are the same. It needs Linux and a C++ compiler (g++, or what CXX names).

  --force                        build again

The library lies in ~/.cache/icnets, or where ICNETS_CACHE says. ICNETS_NATIVE=0 leaves it unused.

Example, after the compiler was changed:

  icnets build --force
"""

HUB = """\
usage: icnets hub save CHECKPOINT DIR [OPTIONS]
       icnets hub push CHECKPOINT OWNER/NAME [OPTIONS]

Write a network with its model card to a folder, or push both to the Hugging Face Hub. icnets.hub.from_pretrained loads
either, and so does timm after import icnets.timm_models, where the network has an ic_ name.

  CHECKPOINT                     what icnets.save or icnets fit wrote (.safetensors)
  --evidence DIR                 folder of icnets compare or icnets fit: its table goes into the card
  --method NAME                  of a comparison, the row that the network is of
  --title TEXT                   of the card (default: the name of the folder or repository)
  --license ID                   of the weights, in the Hub's words: mit, apache-2.0, ... (default: unknown)
  --dataset ID                   on the Hub, of what it was trained on; can be given several times
  --overwrite                    save: replace the network that DIR holds
  --private                      push: a new repository is private
  --revision NAME                push: the branch

It needs pip install 'icnets[hub]', and push a login: hf auth login.

Example:

  icnets hub save runs/ic/checkpoints/best.safetensors shared/ic --evidence runs/ic --license mit
"""

DATA = """\
usage: icnets data check DIR [OPTIONS]

Decode every image of a data set, in folders or in tar shards, and list what is broken, misfiled or double. Nothing is
changed, and no shard is unpacked.

  DIR                            train/, val/ (and test/) with class folders; or class folders; or tar shards, in DIR
                                 or in train/ and val/: members KEY.jpg (png, webp, ...), each followed by KEY.cls,
                                 the class index, or KEY.json, {"label": index}
  --workers N                    processes that decode (default: one per core)
  --csv FILE                     every problem: severity, kind, path, reason; the terminal has the first of each kind
  --min-size N                   report images with a side of fewer pixels (default 16)

Errors stop a training, or make it silently wrong: files that are empty, cut off, unreadable or too large to decode;
16-bit images; empty classes, or classes that a split lacks; one file in two classes or two splits; damaged shards, and
members without partner, with a bad class, with an unsafe name, or that are links. Warnings work, but look: CMYK and
other modes, several frames, wrong extensions, files that training ignores, very small and huge images, repetitions.

Exit status: 0 without errors, 1 with errors in the data, 2 for a mistake in the arguments.

Example:

  icnets data check photos --csv problems.csv
"""

COMMAND_HELP = {
    "fit": FIT,
    "validate": _EVALUATE.format(
        command="validate", summary="Measure a trained network on the validation images.", more="", example=""
    ),
    "test": _EVALUATE.format(
        command="test",
        summary="Measure a trained network on the test images: the protocol, the accuracy, and how each class fares.",
        more=(
            "  --data.crop_pct 0.875          the centre crop, as a fraction of the image; also --data.interpolation\n"
            "  --data.test_crops 10           ten crops of each image, whose probabilities are averaged\n"
            "  --data.test_root DIR           other images, such as ImageNetV2's\n"
            "  --data.real_labels FILE        ImageNet-ReaL's labels, real.json\n"
        ),
        example="",
    ),
    "predict": PREDICT,
    "compare": COMPARE,
    "report": REPORT,
    "profile": PROFILE,
    "export": EXPORT,
    "hub": HUB,
    "data": DATA,
    "build": BUILD,
}
