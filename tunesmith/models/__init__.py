import logging

# importing peft imports bitsandbytes, where it is there, and that warns of a package that nobody here asked for
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
