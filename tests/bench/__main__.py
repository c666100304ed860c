"""`make bench`: cost per request without sockets, then per request and chunk beside Envoy."""

from tests.bench import hot_path, proxy

if __name__ == "__main__":
    for name, value in hot_path.run().items():
        print(f"{name:14} {value:.2f}")
    for what, costs in proxy.run().items():
        print(f"{what:28}" + "  ".join(f"{name} {value:.2f} us" for name, value in costs.items()))
