# `docker build -t sap .` makes an image for CPUs; for CUDA, name PyTorch's wheels for your driver:
#   docker build -t sap --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
#   docker run --rm --gpus all -v "$PWD:/work" sap project model.safetensors data/
# A container's process has to be able to write to the folder: `--user "$(id -u)"` is you.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN python -m pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
RUN python -m pip install --no-cache-dir "/src[demo]"
RUN sap --version

# Any user may run it: caches that libraries keep in the home folder go where everybody may write.
ENV HOME=/tmp SAP_CACHE=/tmp/sap-cache
USER 1000
WORKDIR /work
ENTRYPOINT ["sap"]
CMD ["--help"]
