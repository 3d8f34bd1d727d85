"""Files that hold many images, read in place: shards, tables, arrays. An image is a path that goes on inside of one."""
