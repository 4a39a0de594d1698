# Two images: `--target agent` for every node, `--target controller` for one Deployment. Neither has a compiler or pip;
# both start the one command `virtnet`.

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

FROM python AS controller
COPY --from=build /opt/virtnet /opt/virtnet
USER 65532:65532
CMD ["controller"]
