"""The lab's istiod, as far as a node proxy sees it: delta ADS and the Istio CA, on one port."""
