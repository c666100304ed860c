"""`make bench`: cost per request without sockets, then per request and chunk beside Envoy."""

from tests.bench import hot_path, proxy

if __name__ == "__main__":
    print("Without sockets: microseconds, and the ratio to httptools on the same bytes")
    hot_path.show()
    print("\nUser and system CPU of the process: microseconds, and the ratio to Envoy without filters")
    proxy.show()
