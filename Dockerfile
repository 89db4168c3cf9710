# syntax=docker/dockerfile:1
#
#   docker build -t rd_jax .                                # CPU
#   docker build -t rd_jax --build-arg EXTRAS=cuda13 .      # NVIDIA GPU: cuda12 or cuda13
#
#   docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD:/work" rd_jax \
#     train --config demo --workdir runs/demo               # for a GPU add: --gpus all
#
# The image has no data and no weights. Downloaded weights and decoded images go to /cache, which
# `-v rd_jax:/cache` keeps.
FROM python:3.13-slim

ARG EXTRAS=""
RUN --mount=type=bind,target=/source,rw \
    pip install --no-cache-dir "/source${EXTRAS:+[$EXTRAS]}"

# Any user may write the cache, since --user names one that the image does not know.
RUN mkdir --mode=1777 /cache && mkdir /work
ENV HOME=/cache
USER 65534
WORKDIR /work
ENTRYPOINT ["rd-jax"]
CMD ["--help"]
