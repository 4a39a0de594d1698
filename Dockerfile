# Three images: `--target agent` for every node, or `--target agent-libvirt` for nodes whose libvirt is followed, and
# `--target controller` for one Deployment. None has a compiler or pip; all start the one command `virtnet`.

FROM docker.io/library/debian:bookworm-slim AS python
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/opt/virtnet/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["virtnet"]

# The environment that is copied has no pip: one in an environment beside it installs into it.
FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
RUN python3 -m venv /build/pip && python3 -m venv --without-pip /opt/virtnet
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements.txt /build/
RUN /build/pip/bin/pip --python /opt/virtnet/bin/python install --no-deps --requirement /build/requirements.txt
COPY pyproject.toml README.md LICENSE /build/
COPY operator /build/operator
RUN /build/pip/bin/pip --python /opt/virtnet/bin/python install --no-deps /build

# modprobe is for policies that ask for the state of vhost_net. The agent is root in its container, as capabilities do
# not reach another user there; which ones it has says the pod.
FROM python AS agent
RUN apt-get update \
 && apt-get install --yes --no-install-recommends kmod \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /opt/virtnet /opt/virtnet
CMD ["agent"]

# Debian's own binding fits Debian's Python, and comes with the client library that it was built with: a third more image,
# so it is one of its own. virtnet's environment sees the binding and nothing else of the system's packages.
FROM agent AS agent-libvirt
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-libvirt \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && ln -s /usr/lib/python3/dist-packages/libvirt.py /usr/lib/python3/dist-packages/libvirtmod.*.so \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && python -c 'import libvirt'

FROM python AS controller
COPY --from=build /opt/virtnet /opt/virtnet
USER 65532:65532
CMD ["controller"]
