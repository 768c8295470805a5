# The course in JupyterLab, on CPUs, for one who wants to install nothing else:
#
#   docker build --tag distill .
#   docker run --rm --publish 127.0.0.1:8888:8888 distill
#
# Then open the address that it prints. `--volume distill-runs:/home/reader/distill/runs` keeps the runs.

# What installing needs; the development container starts from here, with its own copy of the clone.
FROM python:3.12-slim AS tools
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --shell /bin/bash reader
USER reader

FROM tools AS course
WORKDIR /home/reader/distill
COPY --chown=reader . .
RUN mkdir runs
RUN make sample TORCH=cpu
EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --no-browser"]
