# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint format proto clean

setup: $(VENV)/.done

$(VENV)/.done: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

# METHOD=fast_rcnn trains without mining, METHOD=ohem_naive mines the naive way
METHOD ?= ohem
ZOO := prototxt/zoo/shapes/$(METHOD)
DEMO := output/demo/$(METHOD)

demo: setup
	$(BIN)/python tools/train_from_prototxt.py $(ZOO)/solver.prototxt --data build --output $(DEMO)
	$(BIN)/python tools/test_from_prototxt.py --def $(ZOO)/test.prototxt --net $(DEMO)/shapes_$(METHOD)_iter_2000.caffemodel \
		--data build --output $(DEMO) --vis 20

test: setup lint
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# prototxt/caffe_pb2.py from prototxt/caffe.proto, with a compiler old enough for every protobuf that we support
proto:
	$(PYTHON) -m venv build/proto
	build/proto/bin/python -m pip install --quiet 'grpcio-tools==1.62.3' 'setuptools<70'
	build/proto/bin/python prototxt/_generate.py

clean:
	rm -rf $(VENV) build output *.egg-info
