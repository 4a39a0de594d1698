# What a developer does here; `make` alone lists it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# These tests wait more than they work: three at a time, each in network namespaces of its own.
AT_ONCE := -n 3

# ethtool, ip and modprobe live in sbin, which a plain user's PATH lacks on Debian.
export PATH := $(PATH):/usr/sbin:/sbin

# Of the cluster for working with: how many nodes, and its name where there are several.
NODES ?= 3
CLUSTER ?= dev

TOOLS := ethtool:ethtool ip:iproute2 modprobe:kmod ps:procps unshare:util-linux
# libvirt-daemon-system, as libvirtd does not start without the user libvirt-qemu that it makes.
GUEST_TOOLS := /usr/share/libvirt/schemas/domain.rng:libvirt0 virsh:libvirt-clients qemu-system-x86_64:qemu-system-x86 \
	'/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu' libvirtd:libvirt-daemon \
	/etc/libvirt/qemu.conf:libvirt-daemon-system '/boot/vmlinuz-*:linux-image-amd64' /usr/bin/busybox:busybox-static
# What libvirt's Python module is built with.
LIBVIRT_BUILD := /usr/include/libvirt/libvirt.h:libvirt-dev pkg-config:pkg-config gcc:gcc

NEED_LIBVIRT = scripts/need $(GUEST_TOOLS) $(LIBVIRT_BUILD) && \
	{ $(BIN)/python -c 'import libvirt' 2>/dev/null || $(PIP_INSTALL) --editable '.[libvirt]'; }

# Nothing is left out quietly: what this machine cannot run fails, unless VIRTNET_ALLOW_SKIPS names it.
not-run = case ";$$VIRTNET_ALLOW_SKIPS;" in \
	*";$(1);"*) echo "NOT RUN, as VIRTNET_ALLOW_SKIPS allows: $(1)";; \
	*) echo "NOT RUN: $(1); VIRTNET_ALLOW_SKIPS='$(1)' accepts that" >&2; exit 1;; esac

.DEFAULT_GOAL := help
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
.PHONY: help demo test check unit flow api kernel kernel-as-root kernel-as-user guests lab cluster cluster-up cluster-load cluster-down bench bench-fleet crds manifests chart fuzz tools clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY) tools  ## the whole story in the terminal, in a namespace of its own
	@$(BIN)/python scripts/demo.py

test: check unit flow api kernel guests lab chart cluster  ## everything, from fast to slow: what continuous integration runs

check: $(READY)  ## format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(READY)  ## the deciding parts, without a host
	$(PYTEST) tests/unit --session-timeout=600

flow: $(READY)  ## random walks over policies on a strict fake host
	$(PYTEST) tests/flow --session-timeout=600

api: $(READY)  ## the agent and the controller, with an API server that fails in every way
	$(PYTEST) tests/agent tests/controller $(AT_ONCE) --session-timeout=900

kernel: $(READY) tools  ## the real kernel in network namespaces, as root and, beside it, as a plain user
	@$(MAKE) --no-print-directory --jobs=2 --output-sync SIDE_BY_SIDE=1 kernel-as-root kernel-as-user

kernel-as-root: $(READY) tools
	@if [ "$$(id -u)" = 0 ]; then set -x; $(PYTEST) tests/kernel $(AT_ONCE) --session-timeout=1200; \
	else $(call not-run,tests/kernel as root); fi

kernel-as-user: $(READY) tools
	@if scripts/as-plain-user true; then set -x; \
	scripts/as-plain-user $(PYTEST) tests/kernel $(AT_ONCE) --session-timeout=1200 -p no:cacheprovider; \
	else $(call not-run,tests/kernel as a plain user); fi

guests: $(READY) tools  ## what libvirt and QEMU themselves say: schema, definitions, a libvirtd beside an agent
	@if [ "$$(id -u)" = 0 ]; then set -x; $(NEED_LIBVIRT) && \
	$(PYTEST) tests/guests --session-timeout=600; \
	else $(call not-run,tests/guests as root); fi

lab: $(READY)  ## vhost_net, bonds, vlans and a guest, in a virtual machine with Debian's kernel
	$(BIN)/python -m tests.lab

cluster: $(READY)  ## the chart on a real Kubernetes cluster of three nodes, made from scratch on this machine
	@if [ "$$(id -u)" = 0 ]; then set -x; \
	$(BIN)/python -m tests.cluster prepare && $(PYTEST) tests/cluster --session-timeout=1500; \
	else $(call not-run,tests/cluster as root); fi

cluster-up: $(READY)  ## such a cluster to work with; NODES=3 CLUSTER=dev
	$(BIN)/python -m tests.cluster up --name=$(CLUSTER) --nodes=$(NODES)

cluster-load: $(READY)  ## build the images from the work tree and give them to its nodes
	$(BIN)/python -m tests.cluster load --name=$(CLUSTER)

cluster-down: $(READY)  ## end it
	$(BIN)/python -m tests.cluster down --name=$(CLUSTER)

bench: $(READY) tools  ## measure, and write docs/performance.md
	$(NEED_LIBVIRT)
	$(BIN)/python -m tests.bench

bench-fleet: $(READY) tools  ## a thousand agents, then 5000 nodes, on a real API server; writes docs/performance-fleet.md
	$(BIN)/python -m tests.bench.fleet

crds: $(READY)  ## write crds/ from the models, and the copies in the chart and in config/
	for place in crds config/crds charts/virtio-network-operator/files/crds; do $(BIN)/virtnet crds --output $$place; done

manifests: $(READY)  ## write config/ from the chart
	$(BIN)/python -m scripts.manifests

chart: $(READY)  ## the chart, config/ and the GitOps examples, on a real API server without nodes
	@if [ "$$(id -u)" = 0 ]; then set -x; \
	$(BIN)/python -m tests.cluster prepare && $(PYTEST) tests/chart --session-timeout=900; \
	else $(call not-run,tests/chart as root); fi

fuzz: $(READY)  ## the property tests, with many more random examples
	scripts/need $(GUEST_TOOLS)
	$(PYTEST) tests/unit tests/flow tests/guests/test_fuzz.py -m hypothesis --hypothesis-profile=fuzz --timeout=7200

tools:
	@scripts/need $(TOOLS)

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist

# Debian ships python3 without ensurepip. The environment must be readable for the tests that run as a plain user.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "virtnet needs Python 3.11 or newer")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/need '/usr/lib/python3*/ensurepip:python3-venv'
	umask 022 && $(PYTHON) -m venv --clear .venv && \
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
