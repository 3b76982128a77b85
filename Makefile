# `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/diffgan
INSTALLED := $(VENV)/.installed
# LOCKED=1: the versions of .github/constraints.txt; LOCKED=oldest: the lower bounds of pyproject.toml, on Python 3.11.
LOCKED ?=
CONSTRAINTS := $(if $(filter-out 0,$(LOCKED)),.github/constraints$(if $(filter oldest,$(LOCKED)),-oldest).txt)

# Tables: SCALE=glyphs|sd15|sdxl; PART=2/3: the second of three parts; PLAN=1: print what it needs; SWEEP: further options.
SCALE ?= glyphs
$(if $(filter glyphs sd15 sdxl,$(SCALE)),,$(error SCALE=$(SCALE) is none of glyphs, sd15, sdxl))
# On the miniature the COCO tables evaluate the demo's student.
DEMO_STUDENT := $(if $(filter glyphs,$(SCALE)),$(if $(filter-out 0,$(PLAN)),,runs/demo/student/model_index.json))
RECONSTRUCT_sd15 := --images data/coco/val2014 --vae stable-diffusion-v1-5/stable-diffusion-v1-5/vae \
  --weights runs/sd15/latent_lpips.safetensors --pixels lpips --device cuda
RECONSTRUCT_sdxl := --images data/coco/val2017 --vae stabilityai/stable-diffusion-xl-base-1.0/vae \
  --weights runs/sdxl/latent_lpips.safetensors --pixels lpips --device cuda
RECONSTRUCTION := runs/figures/$(SCALE)/reconstruction
sweep = $(RUN) sweep configs/tables/$(1).yaml --scale $(SCALE) $(if $(PART),--part $(PART)) $(if $(filter-out 0,$(PLAN)),--plan) $(SWEEP)

# GPU=1: on one GPU, with the differences in configs/glyphs/gpu; $(call gpu,STAGE) follows the file of a stage.
gpu = $(if $(filter-out 0,$(GPU)),-c configs/glyphs/gpu/$(1).yaml)
ON_GPU := $(if $(filter-out 0,$(GPU)),--gpu)

.DEFAULT_GOAL := help
.PHONY: help install demo glyphs glyphs-regression test test-all bench gpu-check lint constraints clean tables \
  glyph-teacher glyph-denoiser glyph-reader glyph-perceptual glyph-pixels figure-reconstruction \
  table-regression-losses table-discriminator table-lora table-coco2014 table-coco2017 table-bapps table-speed

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-24s %s\n", $$1, $$2}'

install: $(INSTALLED) ## create the virtual environment and install everything; LOCKED=1: in fixed versions

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	@echo "installing (some minutes) ..."
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

# ---- the main job ----

demo: $(INSTALLED) ## pairs, distillation, evaluation, export: the whole chain in minutes; again: resumes
	$(RUN) demo $(ON_GPU)

runs/demo/student/model_index.json: | $(INSTALLED)
	@$(MAKE) --no-print-directory demo

glyphs: $(INSTALLED) ## the full miniature experiment (hours; GPU=1: on one GPU, not measured)
	$(RUN) demo --full $(ON_GPU)

glyphs-regression: $(INSTALLED) ## a student of as many images without the discriminator, for comparison
	$(RUN) predict -c configs/glyphs/pairs.yaml
	$(RUN) fit -c configs/glyphs/distill.yaml -c configs/glyphs/regression.yaml
	$(RUN) test -c configs/glyphs/distill.yaml -c configs/glyphs/regression.yaml

# ---- tables and figures of the paper; SCALE=glyphs|sd15|sdxl ----

table-regression-losses: $(INSTALLED) ## regression losses after equal training on the same pairs
	$(call sweep,regression-losses)

table-discriminator: $(INSTALLED) ## the discriminator's parts, added one by one after equal regression
	$(call sweep,discriminator)

table-lora: $(INSTALLED) ## full training and LoRA after equally many images on the same pairs
	$(call sweep,lora)

table-coco2014: $(INSTALLED) $(DEMO_STUDENT) ## teacher, student and released one-step models on COCO2014 (glyphs: glyphs-2k)
	$(call sweep,coco2014)

table-coco2017: $(INSTALLED) $(DEMO_STUDENT) ## the same on COCO2017, with the distance to the teacher and diversity
	$(call sweep,coco2017)

table-bapps: $(INSTALLED) ## agreement of the perceptual distances with people (glyphs: with synthetic choices)
	$(call sweep,bapps)

table-speed: $(INSTALLED) ## what each regression loss and each image costs (sd15, sdxl: a CUDA GPU)
ifneq ($(filter-out 0,$(PLAN)),)
	@echo "table-speed: five rows, minutes; sd15 and sdxl need a CUDA GPU"
else
	$(VENV)/bin/python -W ignore -m tests.bench.speed_table --scale $(SCALE) --records runs/tables/$(SCALE)/speed/records
endif

figure-reconstruction: $(INSTALLED) ## from noise to an image under each perceptual distance
ifneq ($(filter-out 0,$(PLAN)),)
	@echo "figure-reconstruction: minutes$(if $(RECONSTRUCT_$(SCALE)),; needs a CUDA GPU and what these options name: $(RECONSTRUCT_$(SCALE)))"
else
	@if [ -f $(RECONSTRUCTION)/metrics.json ]; then \
	  echo "figure-reconstruction: is done: $(RECONSTRUCTION); remove the folder to make it again"; \
	else $(RUN) reconstruct $(RECONSTRUCTION) $(RECONSTRUCT_$(SCALE)); fi
endif

tables: $(INSTALLED) ## render the tables and plots of every README from the committed records
	$(RUN) render README.md configs diffgan tests

# ---- what the package ships ----

# A completed stage is marked by a file, so an interrupted target resumes with the stage it stopped in.
runs/glyphs/%.done: configs/glyphs/%.yaml | $(INSTALLED)
	$(RUN) fit -c $< $(call gpu,$*)
	@touch $@

runs/glyphs/text_encoder.done: | runs/glyphs/autoencoder.done
runs/glyphs/denoiser.done: runs/glyphs/autoencoder.done runs/glyphs/text_encoder.done

glyph-teacher: runs/glyphs/denoiser.done ## train the glyph teacher anew, into the package (hours; GPU=1: on one GPU, only the denoiser measured)
	$(VENV)/bin/python -m diffgan.glyphs.build pipeline runs/glyphs/teacher diffgan/glyphs/weights/teacher

glyph-denoiser: $(INSTALLED) ## the same, but for the autoencoder and the text encoder, which are the package's
	mkdir -p runs/denoiser/teacher
	cp -r $(addprefix diffgan/glyphs/weights/teacher/,vae text_encoder tokenizer) runs/denoiser/teacher
	$(RUN) fit -c configs/glyphs/denoiser.yaml $(call gpu,denoiser) --recipe.runs runs/denoiser
	$(VENV)/bin/python -m diffgan.glyphs.build pipeline runs/denoiser/teacher diffgan/glyphs/weights/teacher

glyph-reader: runs/glyphs/reader.done ## train the reader of characters anew
	cp runs/glyphs/reader/reader.safetensors diffgan/glyphs/weights/reader.safetensors

runs/glyphs/calibration.done: runs/glyphs/latent_vgg.done

glyph-perceptual: runs/glyphs/calibration.done ## train LatentLPIPS of the glyph latents anew: network, then heads
	$(RUN) test -c configs/glyphs/calibration.yaml --model.init_args.weights glyphs

runs/glyphs/pixels.done: configs/glyphs/pixels.yaml configs/glyphs/pixels-calibration.yaml | $(INSTALLED)
	$(RUN) fit -c configs/glyphs/latent_vgg.yaml $(call gpu,latent_vgg) -c configs/glyphs/pixels.yaml
	$(RUN) fit -c configs/glyphs/calibration.yaml $(call gpu,calibration) -c configs/glyphs/pixels-calibration.yaml
	@touch $@

glyph-pixels: runs/glyphs/pixels.done ## train LPIPS in pixels of the glyphs anew
	cp runs/glyphs/pixel_lpips.safetensors diffgan/glyphs/weights/pixel_lpips.safetensors

# ---- development ----

test: $(INSTALLED) ## the test suite (minutes)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" < /dev/null

test-all: $(INSTALLED) ## the test suite with the long checks
	$(VENV)/bin/python -m pytest < /dev/null

bench: $(INSTALLED) ## speed as ratios: pair generation and training step against their bare network passes
	$(VENV)/bin/python -m tests.bench.overhead
	$(VENV)/bin/python -m tests.bench.factory
	$(VENV)/bin/python -m tests.bench.adversarial_step
	$(VENV)/bin/python -m tests.bench.perceptual
	$(VENV)/bin/python -m tests.bench.loader
	$(VENV)/bin/python -m tests.bench.glyph_data
	$(VENV)/bin/python -W ignore -m tests.bench.device_calls

gpu-check: $(INSTALLED) ## one CUDA GPU: whether everything runs, speed, memory; results in runs/gpu-check.json (6 minutes)
	$(VENV)/bin/python -m tests.gpu --output runs/gpu-check.json

lint: $(INSTALLED) ## ruff
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

RESOLVE = $(VENV)/bin/uv pip compile --quiet --upgrade --no-annotate --custom-compile-command "make constraints"
constraints: $(INSTALLED) ## resolve the versions of .github/constraints.txt and constraints-oldest.txt anew
	$(VENV)/bin/pip install --quiet --disable-pip-version-check uv
	$(RESOLVE) --universal --python-version 3.11 --all-extras pyproject.toml -o .github/constraints.txt
	$(RESOLVE) --resolution lowest-direct --python-version 3.11 --extra dev pyproject.toml -o .github/constraints-oldest.txt

clean: ## delete the folders runs/ and pairs/ as a whole, your own runs and pair sets in them too
	rm -rf runs pairs
